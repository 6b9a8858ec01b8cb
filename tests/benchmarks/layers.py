"""Layers and widths against widths only, at equal multiply-accumulates: what outputs lose, and accuracy for images.

    python tests/benchmarks/layers.py zoo/vit.onnx --targets 0.15 0.1
    python tests/benchmarks/layers.py minilm.onnx --text README.md docs/*.md --tokenizer tokenizer.json --align 8

Both plans of a row come from the same trials: the one of widths leaves those of branches out. Both models are repaired
in the same way (`matched`, so many corrections), and compared with the dense one on samples held back. Without `--text`
the model is a network of `samples/4_train_zoo.py`, and 512 Fashion-MNIST training images calibrate it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import DATA, accuracy, normalised, split

import graphprune
from graphprune.accuracy import Deciding, calibrate
from graphprune.allocate import Budget
from graphprune.analysis import Analysis, silent
from graphprune.calibrate.knowledge import Knowledge, threads_of
from graphprune.model import save
from graphprune.options import Calibrating
from graphprune.plan import PruningPlan
from graphprune.quality import told_feeds
from graphprune.reconstruct.curves import curves
from graphprune.reconstruct.mend import mend
from graphprune.repair import divergences
from graphprune.rewrite import rearranged
from graphprune.score import score
from graphprune.trials import Trial, trials


def known_of(analysis: Analysis, args: argparse.Namespace, folder: Path) -> Knowledge:
    """Calibrate with the text files, or with images."""
    if args.text:
        path = folder / "text.txt"
        path.write_text("\n".join(p.read_text(encoding="utf-8") for p in args.text), encoding="utf-8")
        asked = Calibrating(str(path), tokenizer=str(args.tokenizer), length=args.length, samples=args.samples)
    else:
        images, _ = split(args.data, "train")
        chosen = np.random.default_rng(0).permutation(len(images))[: args.samples]
        name = str(analysis.model.graph.inputs[0].name)
        asked = Calibrating({name: normalised(images[chosen])}, samples=args.samples)
    known, why = calibrate(analysis, asked, silent)
    if known is None:
        raise SystemExit(why)
    return known


def deciders(analysis: Analysis, known: Knowledge, args: argparse.Namespace) -> dict[str, Deciding]:
    """Return what makes plans, without and with branches."""
    coupling = analysis.coupling
    fallback = score(coupling, "l2").by_group
    found = curves(coupling, coupling.groups, known.consumers, known.stats, fallback, align=args.align)
    macs = analysis.costs.macs_by_group()
    groups = sorted(coupling.groups, key=lambda g: -macs[g.name])
    tried = trials(analysis, known, found, [*groups, *coupling.branches.free], args.work)
    for t in tried:
        if not t.width:
            print(f"  {t.group}: {t.loss:.4f}", flush=True)

    def of(some: list[Trial]) -> Deciding:
        return Deciding(analysis, known, found, lambda budget: some)

    return {"widths": of([t for t in tried if t.width]), "layers": of(tried)}


def row(analysis: Analysis, known: Knowledge, plan: PruningPlan, args: argparse.Namespace, folder: Path) -> str:
    """Rewrite and repair by a plan; return what is left and what is lost."""
    coupling = analysis.coupling
    chosen = plan.chosen(coupling)
    pruned = rearranged(analysis.model, coupling, chosen)
    mend(
        analysis.model, pruned, coupling, chosen, known, mode="matched" if args.corrections else "symmetric",
        corrections=args.corrections, threads=threads_of(analysis),
    )
    kept = analysis.costs(plan.sizes_of(coupling)).macs / analysis.dense.macs
    lost: list[Any] = divergences(analysis, pruned, chosen, told_feeds(known))
    said = [f"{d.output}: KL {d.kl:.4f}" if d.kl is not None else f"{d.output}: cosine {d.cosine:.4f}" for d in lost]
    if not args.text:
        save(pruned, folder / "pruned.onnx")
        said.append(f"accuracy {accuracy(folder / 'pruned.onnx', *split(args.data, 't10k')):.2%}")
    return f"MACs {kept:.3f}, {len(plan.bypass)} branches bypassed, {', '.join(said)}"


def main(words: list[str] | None = None) -> None:
    """Measure one model at all targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--targets", type=float, nargs="+", default=[0.5, 0.25])
    parser.add_argument("--text", type=Path, nargs="+")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--align", type=int, default=4)
    parser.add_argument("--work", type=float, default=2e11, help="Multiply-accumulates that all trials may cost.")
    parser.add_argument("--corrections", type=int, default=8)
    args = parser.parse_args(words)
    analysis = graphprune.analyse(args.model)
    with tempfile.TemporaryDirectory() as name:
        known = known_of(analysis, args, Path(name))
        decide = deciders(analysis, known, args)
        for target in args.targets:
            budget = Budget(targets={"macs": target}, allocation="error", align=args.align)
            plans = {kind: each(budget) for kind, each in decide.items()}
            for kind, plan in plans.items():
                if kind == "widths" or plan.bypass:
                    print(f"{target} {kind}: {row(analysis, known, plan, args, Path(name))}", flush=True)
                else:
                    print(f"{target} {kind}: the same plan", flush=True)


if __name__ == "__main__":
    main()
