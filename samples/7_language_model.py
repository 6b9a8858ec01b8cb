"""Remove a part of a language model, and compare its perplexity with the dense model's on text of other kinds.

Nothing is trained: what stays is fitted anew with unlabelled sequences of the calibration files. The model is an ONNX
file with one input, token ids [batch, tokens], and logits for each token as its first output; its parameters beside the
token embeddings are what `--remove` is a fraction of. Run it with:

    python samples/7_language_model.py MODEL.onnx tokenizer.json --calibration docs/*.md \
        --evaluate licence=GPL-3 --evaluate source=lib/*.py [--remove 0.2] [--effort medium] [--save OUT.onnx]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from tokenizers import Tokenizer

import graphprune

Array = npt.NDArray[Any]


def sequences(paths: list[Path], tokenizer: Tokenizer, count: int, length: int) -> Array:
    """Return sequences of so many tokens [count, length] from all files together, evenly spaced over them."""
    texts = [path.read_text(encoding="utf-8") for path in paths]
    ids = np.concatenate([np.array(tokenizer.encode(t, add_special_tokens=False).ids, np.int64) for t in texts])
    whole = ids[: len(ids) // length * length].reshape(-1, length)
    if not len(whole):
        raise SystemExit(f"{paths[0]}: less than {length} tokens")
    return whole[np.unique(np.linspace(0, len(whole) - 1, count).astype(int))]


def perplexity(model: str | bytes, rows: Array) -> float:
    """Return exp of the mean negative log-likelihood of each token after the first of a sequence."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name, losses = session.get_inputs()[0].name, []
    for row in rows:
        logits = np.asarray(session.run(None, {name: row[None]})[0])[0, :-1].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        losses.append(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), row[1:]])
    return float(np.exp(np.mean(losses)))


def outside_embeddings(model: Path) -> float:
    """Return the fraction of a model's parameters that are not in the largest table that tokens are looked up in."""
    graph = onnx.load(model, load_external_data=False).graph
    sizes = {t.name: int(np.prod(t.dims)) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    tables = [sizes[n.input[0]] for n in graph.node if n.op_type == "Gather" and n.input[0] in sizes]
    return 1 - max(tables, default=0) / sum(sizes.values())


def main() -> None:
    """Prune, and print perplexities before and after on every set of texts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--calibration", type=Path, nargs="+", required=True)
    parser.add_argument("--evaluate", nargs="+", action="append", required=True, metavar="NAME=FILE FILE ...")
    parser.add_argument("--remove", type=float, default=0.2, help="fraction of the parameters beside embeddings")
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--effort", default="medium")
    parser.add_argument("--save", type=Path, default=Path("pruned.onnx"))
    args = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    rows = sequences(args.calibration, tokenizer, args.sequences, args.length)
    name = onnx.load(args.model, load_external_data=False).graph.input[0].name
    keep = 1 - args.remove * outside_embeddings(args.model)
    result = graphprune.prune(
        args.model, target={"params": keep}, calibration={name: rows}, effort=args.effort, time=False
    )
    result.save(args.save)
    before, after = (result.report[k]["parameters"] for k in ("before", "after"))
    print(f"parameters {before:,} -> {after:,}, {result.plan.meta.get('trials', 0)} trials, {len(rows)} sequences")
    if result.report["divergence"]["damaged"]:
        print("held-back sequences say that the model is damaged: remove less")
    for first, *others in args.evaluate:
        name, _, path = first.partition("=")
        texts = sequences([Path(path), *map(Path, others)], tokenizer, 16, args.length)
        dense, pruned = (perplexity(str(m), texts) for m in (args.model, args.save))
        print(f"{name}: perplexity {dense:.2f} -> {pruned:.2f}, {pruned / dense:.2f} times, {len(texts)} sequences")


if __name__ == "__main__":
    main()
