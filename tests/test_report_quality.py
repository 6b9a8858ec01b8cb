"""Tables of quality: many outputs, outputs that were not compared at every stage, errors beyond all measure."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from graphprune.report.quality import layers_words, print_repair


def output(name: str, relative: float = 0.1, kl: float | None = None) -> dict[str, Any]:
    return {"output": name, "relative": relative, "cosine": 0.9, "kl": kl, "agree": None if kl is None else 0.5}


def printed(stages: list[tuple[str, list[dict[str, Any]]]], verbose: bool = False) -> list[list[str]]:
    record = {
        "remark": "", "calibration": {"used": 9, "source": "noise", "assumed": [], "left_out": {}},
        "repair": {"mode": "sequential", "layers": [], "notes": []},
        "divergence": {"stages": [{"stage": s, "outputs": o} for s, o in stages], "held_back": True, "damaged": False},
    }
    console = Console(file=io.StringIO(), width=120)
    print_repair(console, record, verbose)
    return [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_one_output_has_a_row_for_every_stage() -> None:
    lines = printed([(s, [output("y", kl=0.25)]) for s in ("first", "middle", "last")])
    assert [x for x in lines if "0.25" in x] == [
        ["y", "first", "0.25", "50.0%", "0.9000", "10.0%"], ["middle", "0.25", "50.0%", "0.9000", "10.0%"],
        ["last", "0.25", "50.0%", "0.9000", "10.0%"],
    ]


def test_of_many_outputs_the_worst_are_shown_before_and_after() -> None:
    outputs = [output(f"o{k}", k / 100) for k in range(20)]
    stages = [(s, outputs) for s in ("first", "middle", "last")]
    lines = printed(stages)
    assert [x[0] for x in lines if "first" in x] == [f"o{k}" for k in range(19, 11, -1)]
    assert not any("middle" in x for x in lines) and ["and", "12", "others,", "which", "differ", "less"] in lines
    assert len([x for x in printed(stages, verbose=True) if "middle" in x]) == 20


def test_outputs_may_be_comparable_at_some_stages_only() -> None:
    """Sizes that depend on data: what differs in size is not compared."""
    lines = printed([("first", []), ("last", [output("a"), output("b")])])
    assert len([x for x in lines if "last" in x]) == 2 and not any("first" in x for x in lines)
    assert not any("outputs" in x for x in printed([("first", [output("a")]), ("last", [])]))


def test_errors_beyond_ten_times_are_not_spelled_out() -> None:
    told = layers_words({"error_before": 3e6, "error_after": 0.125, "largest_after": 20.0})
    assert told == "median error of layers over 1000% to 12.5%, largest left over 1000%"
