"""How near predicted speed-ups are to measured ones, for models whose groups are pruned at random.

    python tests/benchmarks/predicting.py MODEL.onnx... [--effort medium] [--count 8] [--align 16] [--seed 77]

Times are measured anew, none that are kept count; one thread. A line of JSON for each model: `bias` and `spread` are
the mean and the standard deviation of the logarithm of predicted over measured, `seconds` what it took to know times.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from graphprune.analysis import analyse
from graphprune.machine.cache import VARIABLE
from graphprune.machine.known import know
from graphprune.machine.variants import widths
from graphprune.options import Looking
from graphprune.runtime import Runtime
from graphprune.speed import measured_of


def one(model: Path, effort: str, count: int, align: int, seed: int) -> dict[str, Any]:
    """Return what the line of a model says."""
    analysis = analyse(model, Looking(runtime=Runtime(threads=1)))
    began = time.perf_counter()
    latency = know(analysis, align, None, effort, lambda text: None).latency
    took = time.perf_counter() - began
    found = [
        (latency.ns({}) / latency.ns(sizes), measured_of(analysis, {dim: np.arange(n) for dim, n in sizes.items()}))
        for sizes in widths(analysis.coupling, count + 1, align, seed)[1:]
    ]
    off = np.log([predicted / real for predicted, real in found])
    return {
        "model": model.name, "effort": effort, "seconds": round(took, 1), "bias": round(float(off.mean()), 4),
        "spread": round(float(off.std()), 4), "predicted_measured": [[round(x, 3) for x in pair] for pair in found],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--effort", default="medium", choices=("low", "medium", "high"))
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--align", type=int, default=16)
    parser.add_argument("--seed", type=int, default=77)
    args = parser.parse_args()
    os.environ[VARIABLE] = ""
    for model in args.models:
        print(json.dumps(one(model, args.effort, args.count, args.align, args.seed)), flush=True)


if __name__ == "__main__":
    main()
