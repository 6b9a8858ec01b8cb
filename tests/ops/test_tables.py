"""The tables of operator knowledge: every row is tried by some test, and versions are what they should be."""

from __future__ import annotations

import re
from pathlib import Path

import onnx.defs
import pytest

from graphprune.ops import AXES, COSTS, REFITS
from graphprune.ops.registry import Table, row

# What onnx has and CNNs, detectors and transformers do not use as plain operators; all of it is pinned.
OTHERS = {
    "CausalConvWithState", "Constant", "If", "ImageDecoder", "LinearAttention", "Loop", "Scan", "TfIdfVectorizer",
}
OTHER_TYPES = re.compile("Sequence|Optional|String|Regex")


def test_every_operator_is_tried() -> None:
    text = "".join(p.read_text() for p in Path(__file__).parent.glob("test_*.py") if p.name != Path(__file__).name)
    tried = set(re.findall(r"[A-Z][A-Za-z0-9]+", text))
    assert not {operator for _, operator, _, _ in AXES.operators()} - tried


@pytest.mark.parametrize("table", [REFITS, COSTS], ids=["refits", "costs"])
def test_other_tables_have_axis_rules(table: Table[object]) -> None:
    have = {(domain, operator) for domain, operator, _, _ in AXES.operators()}
    assert not {(domain, operator) for domain, operator, _, _ in table.operators()} - have


def test_operators_of_onnx_are_known() -> None:
    """A new operator of onnx is either given a rule or named among the others."""
    names = {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == "" and s.since_version <= 26}
    have = {operator for domain, operator, _, _ in AXES.operators() if domain == ""}
    assert {n for n in names - have if not OTHER_TYPES.search(n)} <= OTHERS


def test_two_rows_for_one_operator_raise() -> None:
    with pytest.raises(ValueError, match="two rows for Relu"):
        Table("answer", [row(1, "Relu"), row(2, "Relu", since=6)])
