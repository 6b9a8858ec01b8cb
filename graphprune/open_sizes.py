"""Open sizes of inputs by the names that people use for them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from graphprune.errors import UsageError

_TOKENS = re.compile(r"ids|tokens|mask", re.I)


def open_sizes(
    symbols: Mapping[str, tuple[int | str, ...]], sizes: Mapping[str, int]
) -> dict[str, int]:
    """Return sizes by the model's own names; `sequence` is that of tokens, whatever it is called.

    >>> open_sizes({"input_ids": ("batch", "s1")}, {"sequence": 128})
    {'s1': 128}

    Raises UsageError, with the names that there are, for one that no open size has.
    """
    open_ = list(dict.fromkeys(n for axes in symbols.values() for n in axes if isinstance(n, str)))
    tokens = [s[1] for name, s in symbols.items() if len(s) == 2 and isinstance(s[1], str) and _TOKENS.search(name)]
    out = {}
    for name, size in sizes.items():
        found = [name] if name in open_ else tokens if name == "sequence" else []
        if not found:
            known = ", ".join(["batch", "threads", *(["sequence"] if tokens else []), *open_])
            raise UsageError(f"no open size is named {name!r}; what can be said: {known}")
        out.update(dict.fromkeys(found, size))
    return out
