"""Run models of a folder as torch modules beside onnxruntime, and see where gradients flow.

    python tests/corpus/parity.py FOLDER [CATALOGUE.json] [--only PATTERN] [--gradients]

One JSON line per model: the largest difference of any output in units of its largest element (allowed are 1e-4, or
what onnxruntime's own optimisations make where that is more), how many weights, and with --gradients which got none
although a change of them changes an output.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from survey import recipe_inputs, recipes_of

from graphprune.converters.pytorch import to_module
from graphprune.errors import GraphPruneError
from graphprune.execute import relative_error
from graphprune.options import Looking
from graphprune.pipeline import analyse
from graphprune.runtime import Runtime, open_session, run

ALLOWED = 1e-4
_PROBED = 40


def arrays(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a module's outputs as arrays, lists as one entry per element, as onnxruntime's are told."""
    out: dict[str, Any] = {}
    for name, value in outputs.items():
        several = isinstance(value, list)
        for key, v in [(f"{name}[{k}]", v) for k, v in enumerate(value)] if several else [(name, value)]:
            out[key] = (v.float() if v.dtype == torch.bfloat16 else v).detach().numpy()
    return out


def noise(path: Path, feeds: Mapping[str, Any], plain: Mapping[str, Any]) -> float:
    """Return how far onnxruntime is from itself with its optimisations on."""
    return relative_error(plain, run(open_session(str(path), Runtime(optimise=True)), feeds))[0]


def without_gradient(module: Any, feeds: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Return how many weights got a gradient, and which got none although a change of them changes an output."""
    torch.manual_seed(0)
    outputs = [v for v in module(**feeds).values() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    loss = sum(((v * torch.rand_like(v))[torch.isfinite(v)].sum() for v in outputs), torch.zeros(()))
    if not loss.requires_grad:
        return 0, ["no output has a gradient"] if list(module.parameters()) else []
    loss.backward()
    dead = [(n, p) for n, p in module.named_parameters() if p.grad is None or not bool(p.grad.abs().max() > 0)]
    count = len(list(module.parameters())) - len(dead)
    found = []
    with torch.no_grad():
        before = arrays(module(**feeds))
        for name, weight in dead[:_PROBED]:
            kept = weight.clone()
            weight += 1e-3 * weight.abs().mean() * torch.randn_like(weight)
            if relative_error(before, arrays(module(**feeds)))[0] > 1e-5:
                found.append(module.onnx_names[name])
            weight.copy_(kept)
    return count, found


def compare(path: Path, recipe: Mapping[str, Any] | None, gradients: bool) -> dict[str, Any]:
    """Compare one model; raises nothing that graphprune raises on purpose."""
    row: dict[str, Any] = {"file": path.name}
    began = time.perf_counter()
    try:
        module = to_module(path).eval()
        feeds = recipe_inputs(recipe or {})
        if set(feeds) != set(module.inputs):
            feeds = analyse(path, Looking(inputs=feeds)).reference.feeds[0]
        row["weights"] = len(list(module.parameters()))
        row["parameters"] = sum(p.numel() for p in module.parameters())
        expected = run(open_session(str(path), Runtime(optimise=False)), feeds)
        start = time.perf_counter()
        with torch.no_grad():
            got = arrays(module(**feeds))
        row["run_s"] = round(time.perf_counter() - start, 2)
        row["error"], row["worst"] = relative_error(expected, {k: got[k] for k in expected})
        shapes = {k: (v.shape, str(v.dtype)) for k, v in expected.items()}
        same = all((got[k].shape, str(got[k].dtype)) == s for k, s in shapes.items())
        row["noise"] = 0.0 if row["error"] <= ALLOWED else noise(path, feeds, expected)
        close = row["error"] <= max(ALLOWED, row["noise"])
        row["outcome"] = "ok" if same and close else "differs" if same else "other form"
        if gradients and row["outcome"] == "ok":
            row["with_gradient"], row["cut_off"] = without_gradient(module, feeds)
    except GraphPruneError as error:
        row["outcome"] = "quantised" if "quantis" in str(error) else type(error).__name__
        row["why"] = str(error)[:300]
    row["seconds"] = round(time.perf_counter() - began, 2)
    return row


def main() -> int:
    """Compare a folder; exit 1 if a model that is not quantised differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("catalogue", type=Path, nargs="?")
    parser.add_argument("--only", default="*")
    parser.add_argument("--after", default="", help="begin behind this file")
    parser.add_argument("--gradients", action="store_true")
    args = parser.parse_args()
    recipes = recipes_of(args.catalogue)
    rows = []
    for path in sorted(p for p in args.folder.glob(f"{args.only}.onnx") if p.name > args.after):
        rows.append(compare(path, recipes.get(path.name), args.gradients))
        print(json.dumps(rows[-1]), flush=True)
    counts = Counter(r["outcome"] for r in rows)
    cut = [r["file"] for r in rows if r.get("cut_off")]
    errors = [r["error"] for r in rows if r["outcome"] == "ok"]
    print(f"{len(rows)} models: {dict(counts)}; weights without gradient: {cut}", file=sys.stderr)
    if errors:
        print(f"median error {np.median(errors):.1e}, largest {max(errors):.1e}", file=sys.stderr)
    return bool(set(counts) - {"ok", "quantised"})


if __name__ == "__main__":
    raise SystemExit(main())
