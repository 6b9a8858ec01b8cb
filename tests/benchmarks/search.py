"""One-shot allocation against search: how far outputs are from the dense model's at equal cost, on unseen data.

    python tests/benchmarks/search.py zoo/inverted.onnx zoo/residual.onnx zoo/vit.onnx --target macs=0.25 \
        [--calibration calibration.npz --evaluate other.npz] [--samples 512] [--effort high] [--work 3e13] \
        [--most 400] [--json out.json]

Without `--calibration` the networks are those of `samples/4_train_zoo.py`: calibrated with training images of
Fashion-MNIST, compared on test images. Else both are .npz files with one array per input (or whatever `prune
--calibration` takes). Both plans are repaired in the same way, by what the effort says, and timed. The search is that
of high effort unless `--work` and `--most` say something else. Seconds are those of the search alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from graphprune import searching
from graphprune.accuracy import Deciding
from graphprune.allocate import Budget, detect_alignment
from graphprune.analysis import Analysis, analyse, silent
from graphprune.calibrate.choice import parse_calibration
from graphprune.calibrate.knowledge import threads_of
from graphprune.calibrate.samples import Samples
from graphprune.execute import session
from graphprune.machine.known import know
from graphprune.options import Calibrating, Checking, Choosing, Looking, parse_targets
from graphprune.order import Order
from graphprune.pipeline import begun, decider
from graphprune.plan import PruningPlan
from graphprune.pricing import priced
from graphprune.quality import Comparison
from graphprune.rewrite import arranged, rearranged
from graphprune.runtime import Runtime, run
from graphprune.speed import measured as speedup

HERE = Path(__file__).resolve().parent


def images(name: str, count: int) -> Any:
    """Return so many images of "train" or "t10k", drawn by a fixed seed."""
    spec = importlib.util.spec_from_file_location("accuracy", HERE / "accuracy.py")
    assert spec is not None and spec.loader is not None
    accuracy = importlib.util.module_from_spec(spec)
    sys.modules["accuracy"] = accuracy
    spec.loader.exec_module(accuracy)
    found, _ = accuracy.split(accuracy.DATA, name)
    return accuracy.normalised(found[np.random.default_rng(0).permutation(len(found))[:count]])


def divergence(analysis: Analysis, pruned: Any, chosen: Any, samples: Samples) -> float:
    """Return what the outputs of a pruned model lose on samples (`Divergence.loss`, summed)."""
    left, right = (session(m, Runtime(threads=threads_of(analysis))) for m in (analysis.model, pruned))
    found = Comparison()
    for feed in samples.batches(32):
        before = arranged(run(left, feed), analysis.coupling, chosen)
        found.add(before, run(right, arranged(feed, analysis.coupling, chosen)), feed)
    return sum(d.loss for d in found.divergences())


def measured(path: Path, args: argparse.Namespace, data: tuple[Any, Any]) -> dict[str, Any]:
    """Plan, search, repair and compare one model."""
    analysis = analyse(str(path), Looking(threads=0))
    targets = parse_targets(args.target)
    choosing = Choosing(targets={k: v for k, v in targets.items() if k != "latency"})
    asked = Calibrating(calibration=data[0], samples=args.samples, effort=args.effort)
    analysis, known, repairing = begun(analysis, Order(choosing, Checking(), asked), silent)
    assert known is not None and repairing is not None
    analysis, align = priced(analysis, choosing), detect_alignment()
    if "latency" in targets:  # as predicted, for one plan and the other alike
        analysis = analysis.pricing(know(analysis, align, None, args.effort, silent).latency)
    decide = decider(analysis, choosing, known, silent)
    assert isinstance(decide, Deciding)
    budget = Budget(targets=targets, allocation="error", align=align)
    plan = decide(budget)
    began = time.perf_counter()
    better = searching.improved(decide, plan, budget, silent)
    seconds = time.perf_counter() - began
    shapes = {name: tuple(a.shape) for name, a in analysis.reference.feeds[0].items()}
    opened = parse_calibration(data[1], None, None, None)
    samples = opened.open(analysis.model, limit=2000, seed=1, shapes=shapes, bounds=analysis.index_bounds)

    def lost(plan: PruningPlan) -> dict[str, float]:
        chosen = plan.chosen(analysis.coupling)
        pruned = rearranged(analysis.model, analysis.coupling, chosen)
        told = repairing(analysis, pruned, chosen, silent)
        held = sum(d["relative"] ** 2 if d["kl"] is None else d["kl"] for d in told["divergence"]["after"])
        after = analysis.costs(plan.sizes_of(analysis.coupling))
        kept = {k: after.of(k) / analysis.dense.of(k) for k in targets}
        found = {"held_back": held, "other_data": divergence(analysis, pruned, chosen, samples), **kept}
        return {**found, "speedup": speedup(analysis, plan)}

    return {
        "model": path.stem, "one_shot": lost(plan), "search": lost(better), "seconds": seconds,
        "told": better.meta.get("search"),
    }


def main() -> None:
    """Print a line for every model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--target", action="append", required=True)
    parser.add_argument("--calibration")
    parser.add_argument("--evaluate")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--effort", default="high")
    parser.add_argument("--work", type=float, help="multiply-accumulates of all candidates")
    parser.add_argument("--most", type=int, help="candidates at most")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    searching.WORK[args.effort] = searching.WORK["high"] if args.work is None else args.work
    searching.MOST[args.effort] = searching.MOST["high"] if args.most is None else args.most
    data = (args.calibration, args.evaluate or args.calibration)
    if args.calibration is None:
        data = ({"image": images("train", args.samples)}, {"image": images("t10k", 2000)})
    rows = []
    for path in args.models:
        rows.append(row := measured(path, args, data))
        one, more, told = row["one_shot"], row["search"], row["told"] or {}
        print(
            f"{row['model']:12} held back {one['held_back']:.4f} -> {more['held_back']:.4f}, other data "
            f"{one['other_data']:.4f} -> {more['other_data']:.4f} ({more['other_data'] / one['other_data'] - 1:+.0%}), "
            f"speed-up {one['speedup']:.2f} -> {more['speedup']:.2f}, {told.get('evaluations', 0)} candidates in "
            f"{row['seconds']:.0f} s, searched {told.get('before', 0):.4f} -> {told.get('after', 0):.4f}",
            flush=True,
        )
        if args.json is not None:
            args.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
