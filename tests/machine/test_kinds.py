"""Memory and energy, counted by hand; how a model will be run; targets of every kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from building import Builder
from small import cnn, put, record, refused

from graphprune import analyse, prune
from graphprune.allocate.budget import Budget
from graphprune.allocate.error import kept_counts
from graphprune.analysis import Analysis
from graphprune.deployment import Deployment, parse_at
from graphprune.errors import UsageError
from graphprune.kinds import KINDS
from graphprune.machine.energy import PER_MAC, PER_MOVED_BYTE, PER_STORED_BYTE, energy
from graphprune.machine.memory import memory
from graphprune.options import Looking

WEIGHTS = 4 * (32 * 27 + 32 + 48 * 32 * 9 + 48 + 5 * 48 + 5)


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    found = analyse(cnn())
    return found.pricing(memory(found.costs), energy())


def sizes(analysis: Analysis, first: int, second: int) -> dict:
    return dict(zip([g.dim for g in analysis.coupling.groups], (first, second), strict=True))


def test_memory_is_weights_and_what_is_alive_at_once(analysis: Analysis) -> None:
    # the second convolution holds its input and its output, 8 x 8 and 8 x 8 positions; both activations are in place
    assert analysis.costs({}).of("memory") == WEIGHTS + 4 * 64 * (32 + 48)
    half = 4 * (16 * 27 + 16 + 24 * 16 * 9 + 24 + 5 * 24 + 5)
    assert analysis.costs(sizes(analysis, 16, 24)).of("memory") == half + 4 * 64 * (16 + 24)


def test_the_peak_moves(analysis: Analysis) -> None:
    less = 4 * (32 * 27 + 32 + 1 * 32 * 9 + 1 + 5 + 5)
    assert analysis.costs(sizes(analysis, 32, 1)).of("memory") == less + 4 * 64 * (32 + 3)  # now at the first one


def test_a_branch_is_held_until_it_is_added() -> None:
    net = Builder()
    x = net.input(16, 8, 8)
    stem = net.conv(x, 16, bias=False)
    out = net.op("Add", net.conv(net.op("Relu", net.conv(stem, 64, bias=False)), 16, bias=False), stem)
    net.output(out)
    found = analyse(net.model())
    costs = found.pricing(memory(found.costs)).costs
    assert costs({}).of("memory") == costs({}).bytes + 4 * 64 * (16 + 64 + 16)


def test_energy_is_what_multiplying_and_moving_take(analysis: Analysis) -> None:
    dense = analysis.costs({})
    values = [(3, 32), (32, 32), (32, 48), (48, 48)]  # convolutions and activations, read and given
    moved = 4 * (64 * sum(a + b for a, b in values) + 64 * 48 + 48 + 48 + 5)
    expected = PER_MAC * dense.macs + PER_MOVED_BYTE * moved + PER_STORED_BYTE * WEIGHTS
    assert dense.of("energy-proxy") == pytest.approx(expected)
    assert dense.to_json()["energy-proxy"] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["memory", "energy-proxy"])
def test_targets_of_these_kinds_are_met_and_used_up(analysis: Analysis, kind: str) -> None:
    widths = {g.name: np.arange(g.size + 1) for g in analysis.coupling.groups}
    curves = {name: (found, (found[-1] - found) ** 2.0) for name, found in widths.items()}
    counts = kept_counts(analysis.coupling, curves, analysis.costs, Budget(targets={kind: 0.6, "macs": 0.9}))
    after = analysis.costs({g.dim: counts[g.name] for g in analysis.coupling.groups})
    assert 0.55 < after.of(kind) / analysis.costs({}).of(kind) <= 0.6
    assert after.macs <= 0.9 * analysis.costs({}).macs


def test_several_targets_from_the_command_line(net: Path, tmp_path: Path) -> None:
    told = record(
        "plan", net, "--target", "memory=0.7", "--target", "energy-proxy=0.6", "--target", "macs=0.9", "--align", "1",
        "--calibration", "off",
    )["plan"]
    fractions = {kind: told["meta"]["costs"][kind] / told["model"][kind] for kind in ("memory", "energy-proxy", "macs")}
    assert fractions["memory"] <= 0.7 and fractions["energy-proxy"] <= 0.6 and fractions["macs"] <= 0.9
    refused(tmp_path, "plan", net, "--target", "watts=0.5", says=", ".join(KINDS))


# ---- how a model will be run


def test_what_is_said_of_the_deployment_is_read() -> None:
    assert parse_at(["batch=8,threads=0", "width=64"]) == Deployment(8, 0, {"width": 64})
    looked = parse_at(["batch=8,threads=4,width=64"]).looking(Looking(seed=3))
    assert (looked.batch, looked.runtime.threads, dict(looked.sizes), looked.seed) == (8, 4, {"width": 64}, 3)
    with pytest.raises(UsageError, match="the batch is 4 by --batch and 8 by --at"):
        Deployment(8).looking(Looking(batch=4))


@pytest.mark.parametrize("text", ["batch", "batch=0", "batch=-1", "=3", "batch=2,batch=3", "a=1.5", ""])
def test_what_makes_no_sense_of_it_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--at"):
        parse_at([text])


def test_costs_are_those_of_the_deployment(net: Path) -> None:
    one, eight = (record("inspect", net, "--at", f"batch={n}")["model"]["macs"] for n in (1, 8))
    assert eight == 8 * one
    result = prune(net, 0.5, at={"batch": 4, "threads": 2}, run=False)
    assert result.report["model"]["inputs"]["x"][0] == 4


def test_open_sizes_have_names(tmp_path: Path) -> None:
    path = put(tmp_path / "open.onnx", cnn(batch="frames"))
    assert record("inspect", path, "--at", "frames=5")["model"]["inputs"]["x"] == [5, 3, 8, 8]
    refused(tmp_path, "inspect", path, "--at", "height=5", says="no open size is named 'height'")
