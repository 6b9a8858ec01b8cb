"""What a model loses when latency is the target, against MACs as the target, at the same measured speed-up.

    python tests/benchmarks/divergence.py MODEL.onnx CALIBRATION TEST.npz [--speedup 1.5 2] [--prune OPTIONS...]

First `prune --speedup`; then `prune --target macs=`, the fraction searched until its model is as fast as the first.
All are timed in turn with the dense model, on one thread, by speed.py, and compared with it on the arrays of
TEST.npz, one for each input, on which nothing was fitted. `at_equal_speed` is the loss of MACs as the target there
where the line through the logarithms of the two nearest models meets the speed-up of the first. `gain` is how much less
the first loses than the nearest by MACs, in the mean over samples, and `error` the standard error of that. A line of
JSON for each speed-up.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from speed import measured

from graphprune.execute import session
from graphprune.model import load
from graphprune.quality import Comparison, Divergence, gained, together
from graphprune.runtime import Runtime, run

CLOSE, APART, TRIES, BATCH = 0.02, 0.03, 4, 32


@dataclass(frozen=True)
class Case:
    """A model, what it is calibrated with and tested on, and options of prune."""

    model: Path
    calibration: str
    test: str
    more: tuple[str, ...]
    folder: Path

    def made(self, option: str, value: str) -> dict[str, Any]:
        """Prune by one target; return speed-up, what is left of the MACs, and the loss on test data."""
        output = self.folder / "pruned.onnx"
        command = [sys.executable, "-m", "graphprune", "prune", str(self.model), option, value, "-o", str(output),
                   "--calibration", self.calibration, "--force", "--json", "--no-time", *self.more]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        told = json.loads(done.stdout.splitlines()[-1]) if done.stdout else {"error": done.stderr[-300:]}
        if "error" in told:
            raise SystemExit(f"{self.model.name}, {option} {value}: {told['error']}")
        _, own = measured(self.model, output, told["model"]["inputs"])
        macs = told["after"]["macs"] / told["before"]["macs"]
        outputs = self.outputs(output)
        return {"speedup": own, "macs": macs, "loss": together(outputs), "outputs": outputs}

    def outputs(self, pruned: Path) -> list[Divergence]:
        """Return how far outputs are from the dense model's on test data."""
        dense = load(self.model)
        left, right = (session(m, Runtime(threads=1)) for m in (dense, load(pruned)))
        found = Comparison()
        with np.load(self.test) as arrays:
            data = {name: arrays[name] for name in arrays.files}
        fixed = next(i.shape for i in dense.graph.inputs if i.name in data)
        batch = fixed[0] if fixed is not None and isinstance(fixed[0], int) else BATCH
        for start in range(0, len(next(iter(data.values()))), batch):
            feed = {name: array[start : start + batch] for name, array in data.items()}
            found.add(run(left, feed), run(right, feed), feed)
        return found.divergences()


def compared(case: Case, speedup: float) -> dict[str, Any]:
    """Return what both targets give at the same measured speed-up."""
    first = case.made("--speedup", str(speedup))
    keep, tried = first["macs"], []
    while len(tried) < TRIES:
        tried.append(case.made("--target", f"macs={keep:.4f}"))
        near = sorted(tried, key=lambda t: abs(math.log(t["speedup"] / first["speedup"])))
        if len(near) > 1 and abs(near[0]["speedup"] / first["speedup"] - 1) <= CLOSE:
            break
        slope = min(line(near[:2], "macs"), -0.3) if len(near) > 1 else -1.0
        step = (first["speedup"] / near[0]["speedup"]) ** (1 / slope)
        step = step if abs(step - 1) > APART else 1 + math.copysign(APART, step - 1)
        keep = min(near[0]["macs"] * step, 1.0)
    gap = math.log(first["speedup"] / near[0]["speedup"])
    equal = near[0]["loss"] * math.exp(gap * max(1 / line(near[:2], "loss"), 0.0))
    gain, error = gained(first.pop("outputs"), near[0]["outputs"])
    near = [{k: v for k, v in found.items() if k != "outputs"} for found in near]
    return {"model": case.model.name, "asked": speedup, "latency": first, "macs": near, "at_equal_speed": equal,
            "gain": gain, "error": error}  # fmt: skip


def line(two: list[dict[str, Any]], key: str) -> float:
    """Return the slope of the logarithm of the speed-up over that of another number, for two models."""
    one, other = two
    rise, run_ = (math.log(one[k] / other[k]) for k in ("speedup", key))
    return rise / run_ if rise and run_ else math.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration")
    parser.add_argument("test")
    parser.add_argument("--speedup", nargs="*", type=float, default=[1.5, 2.0])
    parser.add_argument("--prune", nargs=argparse.REMAINDER, default=[], help="Options of prune, last.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        case = Case(asked.model, asked.calibration, asked.test, tuple(asked.prune), Path(folder))
        for speedup in asked.speedup:
            print(json.dumps(compared(case, speedup)), flush=True)


if __name__ == "__main__":
    main()
