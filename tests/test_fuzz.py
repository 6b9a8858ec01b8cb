"""As many random graphs as fit into a fixed time, from seed 0 upward; see fuzz.py."""

from __future__ import annotations

import os
import time

import fuzz

SECONDS = float(os.environ.get("GRAPHPRUNE_FUZZ_SECONDS", "40"))
ENOUGH = 60


def test_random_graphs_pass_both_oracles() -> None:
    """No failure; and the graphs are such that passing means something."""
    tally, start = fuzz.Tally(), time.perf_counter()
    seed = 0
    while time.perf_counter() - start < SECONDS or len(tally.of("done")) < ENOUGH:
        tally.outcomes.append(fuzz.check(seed))
        seed += 1
    assert not (failed := tally.of("failed")), "\n".join(f"seed {o.seed}: {o.why}" for o in failed)
    assert len(tally.of("skipped")) <= 0.05 * seed, tally.text()
    assert tally.share_with_groups() > 0.7 and tally.mean_coverage() > 0.4, tally.text()


def test_a_seed_gives_the_same_graph_again() -> None:
    first, second = (fuzz.Fuzz(11).build().SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
