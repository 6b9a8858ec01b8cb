"""Random valid ONNX graphs, and the chain from tracing to both oracles run on each of them.

    python tests/fuzz.py --seeds 0-1000            # prints failures with their seed, then what was covered
    python tests/fuzz.py --seeds 17 --save /tmp    # also writes the model

Every graph first runs in onnxruntime; then nothing may crash, the permutation proof must pass, a randomly pruned model
must run with the same output shapes, and equal the masked model for dims that are not normalised over; with some of its
residual branches bypassed, too. Cleaned up, it must give the same numbers, bit for bit.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from random_graphs import Fuzz
from wrapping import FLAG, wrapped

from graphprune.execute import evaluate, relative_error
from graphprune.feeds import observer
from graphprune.groups import Coupling, couple
from graphprune.model import load
from graphprune.normalize import normalize
from graphprune.prove import Reference, prove
from graphprune.rewrite import masked, rearranged
from graphprune.sizes import choose
from graphprune.trace import trace
from graphprune.transform.cleanup import bitwise, cleaned

TOLERANCE = 1e-3
BYPASSED = 0.5  # of all residual branches
WRAPPED = 0.2  # of all graphs get a part of them put into a body
_NOISE = 1e-6


@dataclass
class Outcome:
    """What became of one seed: `done`, `skipped` (not a valid graph, or numerically hopeless) or `failed`."""

    seed: int
    status: str
    why: str = ""
    groups: int = 0
    coverage: float = 0.0
    free: int = 0
    branches: int = 0
    cleaned: int = 0
    operators: Counter[str] = field(default_factory=Counter)


def check(seed: int, save: Path | None = None) -> Outcome:
    """Build the graph of a seed and hold it against both oracles."""
    b = Fuzz(seed)
    try:
        proto, feeds = b.build(), b.feeds(seed)
        rng = np.random.default_rng([seed, 9])
        if rng.random() < WRAPPED:
            proto, _ = wrapped(proto, rng, b.opset)
            if any(i.name == FLAG for i in proto.graph.input):
                feeds[FLAG] = rng.integers(2, size=())
        if save:
            onnx.save(proto, save / f"fuzz{seed}.onnx")
        dense = evaluate(load(proto), feeds)
        evaluate(load(proto), feeds, optimise=True)
    except Exception as error:
        return Outcome(seed, "skipped", f"{type(error).__name__}: {str(error)[:200]}")
    if not all(np.isfinite(v).all() for v in dense.values() if v.dtype.kind == "f"):
        return Outcome(seed, "skipped", "not finite")
    bodies = [a.g for n in proto.graph.node for a in n.attribute if a.HasField("g")]
    operators = Counter(n.op_type for graph in (proto.graph, *bodies) for n in graph.node)
    written = proto.SerializeToString(deterministic=True)
    try:
        got = hold(proto, feeds, seed, b.everything)
    except Exception:
        return Outcome(seed, "failed", traceback.format_exc(limit=-4), operators=operators)
    if proto.SerializeToString(deterministic=True) != written:
        got.status, got.why = "failed", "the caller's model was changed"
    got.operators = operators
    return got


def hold(proto: onnx.ModelProto, feeds: dict[str, Any], seed: int, told: bool) -> Outcome:
    """Run the chain, `told` the sizes of inputs or not; a disagreement is a failure unless rounding explains it."""
    rng = np.random.default_rng([seed, 5])
    model = normalize(load(proto))
    coupling = couple(trace(model, choose(model, {k: v.shape for k, v in feeds.items()} if told else {}, observer())))
    free = {g.dim for g in coupling.groups if not g.normalised}
    out = Outcome(seed, "done", "", len(coupling.groups), coupling.coverage, len(free))
    dense = evaluate(model, feeds)
    proof = prove(model, coupling, Reference(load(proto), (feeds,), threads=1), seed=seed)
    if proof.max_relative_error > TOLERANCE:
        if hopeless(model, feeds, dense, proof.max_relative_error):
            return Outcome(seed, "skipped", "ill-conditioned")
        error, name = proof.max_relative_error, proof.worst_output
        out.status, out.why = "failed", f"proof {error:.1e} on {name}: {proof.culprits}"
        return out
    pruned = evaluate(rearranged(model, coupling, some(coupling, rng)), feeds)
    shapes = {k: (v.shape, pruned[k].shape) for k, v in dense.items() if v.shape != pruned[k].shape}
    if shapes:
        out.status, out.why = "failed", f"pruned shapes {shapes}"
        return out
    chosen = {d: c for d, c in some(coupling, rng).items() if d in free}
    closed = [b for b in coupling.branches.free if rng.random() < BYPASSED]
    chosen.update({b.gate: np.zeros(0, np.int64) for b in closed})
    out.branches = len(closed)
    rewritten, masks = rearranged(model, coupling, chosen), masked(model, coupling, chosen)
    small = evaluate(rewritten, feeds)
    tidy, said = cleaned(rewritten, coupling, chosen, lambda one, other, allowed: not allowed)
    out.cleaned = said.nodes
    if not bitwise(small, evaluate(tidy, feeds)):
        out.status, out.why = "failed", f"clean-up of {said} changed the outputs"
        return out
    error, name = relative_error(evaluate(masks, feeds), small)
    if error > TOLERANCE and not hopeless(masks, feeds, evaluate(masks, feeds), error):
        out.status, out.why = "failed", f"masked {error:.1e} on {name}: {blame(model, coupling, chosen, feeds)}"
    return out


def some(coupling: Coupling, rng: np.random.Generator) -> dict[Any, Any]:
    """Keep random indices of every group, at least as many as it must have."""
    numbers = {g.dim: int(rng.integers(g.least, g.size + 1)) for g in coupling.groups}
    return {dim: np.sort(rng.choice(dim.size, number, replace=False)) for dim, number in numbers.items()}


def hopeless(model: Any, feeds: dict[str, Any], dense: Any, error: float) -> bool:
    """Return whether inputs changed by a millionth change the outputs about as much."""
    rng = np.random.default_rng(0)
    noise = {k: (1 + _NOISE * rng.standard_normal(v.shape)).astype(np.float32) for k, v in feeds.items()}
    moved = {k: v * noise[k] if v.dtype.kind == "f" else v for k, v in feeds.items()}
    return relative_error(dense, evaluate(model, moved))[0] > error / 100


def blame(model: Any, coupling: Coupling, chosen: dict[Any, Any], feeds: dict[str, Any]) -> list[str]:
    """Return the groups whose removal by themselves differs from their masking."""
    found = []
    for dim, kept in chosen.items():
        one = {dim: kept}
        a, b = evaluate(masked(model, coupling, one), feeds), evaluate(rearranged(model, coupling, one), feeds)
        if relative_error(a, b)[0] > TOLERANCE:
            found.append(coupling.dims[dim].name if dim in coupling.dims else coupling.branches.by_gate[dim].name)
    return found


@dataclass
class Tally:
    """Sums over seeds."""

    outcomes: list[Outcome] = field(default_factory=list)

    def of(self, status: str) -> list[Outcome]:
        return [o for o in self.outcomes if o.status == status]

    def share_with_groups(self) -> float:
        done = self.of("done")
        return sum(o.groups > 0 for o in done) / max(len(done), 1)

    def mean_coverage(self) -> float:
        return float(np.mean([o.coverage for o in self.of("done")] or [0.0]))

    def text(self) -> str:
        n = len(self.outcomes)
        done = self.of("done")
        operators = sum((o.operators for o in done), Counter())
        return (
            f"{n} seeds: {len(done)} done, {len(self.of('failed'))} failed, {len(self.of('skipped'))} skipped; "
            f"{self.share_with_groups():.0%} with groups, {np.mean([o.groups for o in done] or [0]):.1f} groups each "
            f"({np.mean([o.free for o in done] or [0]):.1f} not normalised over), "
            f"{sum(o.branches for o in done)} branches bypassed, {sum(o.cleaned for o in done)} nodes cleaned up, "
            f"coverage {self.mean_coverage():.0%}, {len(operators)} operators"
        )


def main() -> int:
    """Run the seeds of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0-200", help="one seed, or FIRST-LAST")
    parser.add_argument("--save", type=Path, help="folder to write the models into")
    parser.add_argument("--skipped", action="store_true", help="also print what was skipped")
    options = parser.parse_args()
    first, _, last = options.seeds.partition("-")
    tally, start = Tally(), time.perf_counter()
    for seed in range(int(first), int(last or first) + 1):
        got = check(seed, options.save)
        tally.outcomes.append(got)
        if got.status == "failed" or (options.skipped and got.status == "skipped"):
            print(f"seed {seed} {got.status}: {got.why}", flush=True)
    print(f"{tally.text()}; {time.perf_counter() - start:.0f} s")
    return 1 if tally.of("failed") else 0


if __name__ == "__main__":
    sys.exit(main())
