"""Prunings put together from refits that are kept are those that repair makes."""

from __future__ import annotations

import layered
import numpy as np
import pytest
from layered import keeping, known, pruned_of, samples_of

from graphprune.execute import evaluate
from graphprune.reconstruct import reused
from graphprune.reconstruct.mend import mend
from graphprune.reconstruct.reused import Reused, Store


@pytest.mark.parametrize("limit", [1e9, 0])
@pytest.mark.parametrize("kind", list(layered.KINDS))
def test_a_model_put_together_is_the_one_that_repair_makes(kind: str, limit: float) -> None:
    """Also with widths in other combinations, whose refits are there already, and where all of them are on disk."""
    analysis, learnt = known(layered.KINDS[kind](), 80)
    again = Reused(analysis.coupling, learnt, Store(limit))
    few, more = keeping(analysis, 0.4), keeping(analysis, 0.7)
    mixed = {d: few[d] if k % 2 else more[d] for k, d in enumerate(few)}
    (feed,) = samples_of(analysis, 20, 5).open()
    for chosen in (few, more, mixed, mixed):
        expected, found = pruned_of(analysis, chosen), pruned_of(analysis, chosen)
        plain = evaluate(expected, feed)
        done = mend(analysis.model, expected, analysis.coupling, chosen, learnt, mode="symmetric")
        again.mend(found, chosen)
        got, wanted = evaluate(found, feed), evaluate(expected, feed)
        for name, array in wanted.items():
            np.testing.assert_allclose(got[name], array, rtol=2e-4, atol=2e-5 * np.abs(array).max())
        if any(x.strength is not None for x in done):
            assert any(np.abs(plain[n] - wanted[n]).max() > 1e-3 for n in wanted)


def test_refits_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    analysis, learnt = known(layered.KINDS["conv"](), 80)
    again, chosen = Reused(analysis.coupling, learnt, Store(1e9)), keeping(analysis, 0.5)
    again.mend(pruned_of(analysis, chosen), chosen)

    def refused(*args: object) -> None:
        raise AssertionError("a refit that was there is made again")

    monkeypatch.setattr(reused, "attempted", refused)
    monkeypatch.setattr(reused, "chosen_repair", refused)
    again.mend(pruned_of(analysis, chosen), chosen)
    with pytest.raises(AssertionError, match="made again"):
        again.mend(pruned_of(analysis, keeping(analysis, 0.75)), keeping(analysis, 0.75))


def test_a_store_without_room_makes_things_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def make() -> tuple[np.ndarray, ...]:
        made.append(1)
        return (np.ones(3),)

    full = Store(0)
    monkeypatch.setattr(reused, "_LEFT_FREE", 10**20)
    assert full("a", make)[0].tolist() == full("a", make)[0].tolist() == [1, 1, 1] and len(made) == 2
    monkeypatch.setattr(reused, "_LEFT_FREE", 0)
    assert full("a", make)[0].tolist() == full("a", make)[0].tolist() == [1, 1, 1] and len(made) == 3
