"""How thoroughly the properties are looked at; GRAPHPRUNE_EXAMPLES asks for more."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "graphprune",
    max_examples=int(os.environ.get("GRAPHPRUNE_EXAMPLES", "150")),
    deadline=None,
    derandomize="GRAPHPRUNE_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("graphprune")
