"""Remove a part of a sentence encoder, and compare its embeddings with the dense model's on other text.

Nothing is trained: what stays is fitted anew with unlabelled sentences of the calibration files. The model is an ONNX
file with inputs `input_ids` and `attention_mask` (and perhaps `token_type_ids`) and an embedding for each token as its
first output; a sentence's embedding is their mean. What is counted as the encoder are all weights but the tables that
tokens are looked up in. Text files are cut into sentences; `.py` files give their docstrings. Run it with:

    python samples/6_sentence_embeddings.py MODEL.onnx tokenizer.json --calibration docs/*.md \
        --evaluate other=texts/*.txt [--remove 0.25] [--sentences 256] [--effort medium] [--no-vary] [--save OUT.onnx]
"""

from __future__ import annotations

import argparse
import ast
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from tokenizers import Tokenizer

import graphprune

Array = npt.NDArray[Any]
LONGEST = 128  # tokens of a sentence


def text_of(path: Path) -> str:
    """Return the text of a file, of Python files that of their docstrings."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return re.sub(r"```.*?```", "", text, flags=re.S)  # code between paragraphs
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    return "\n\n".join(ast.get_docstring(n) or "" for n in ast.walk(ast.parse(text)) if isinstance(n, kinds))


def sentences(paths: list[Path], count: int) -> list[str]:
    """Return some of the sentences of 6 to 60 words, mostly letters, each once."""
    found = {}
    for path in paths:
        for paragraph in re.split(r"\n\s*\n", text_of(path)):
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", re.sub(r"\s+", " ", paragraph.strip())):
                letters = sum(c.isalpha() or c in " ,.'-" for c in sentence)
                if 6 <= len(sentence.split()) <= 60 and letters > 0.9 * len(sentence):
                    found[sentence] = None
    names = list(found)
    return [names[k] for k in np.random.default_rng(0).permutation(len(names))[:count]]


def encoded(texts: list[str], tokenizer: Tokenizer, names: list[str]) -> dict[str, Array]:
    """Return the model's inputs for sentences, padded to the longest."""
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding()
    found = tokenizer.encode_batch(texts)
    parts = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    return {name: np.array([getattr(e, parts[name]) for e in found], np.int64) for name in names}


def batches(texts: list[str], tokenizer: Tokenizer, names: list[str]) -> list[dict[str, Array]]:
    """Return inputs for 16 sentences each, of nearly one length, so that little is padding; in mixed order."""
    tokenizer.no_padding()  # a file may ask for a fixed length
    ranked = sorted(texts, key=lambda t: len(tokenizer.encode(t).ids))
    found = [encoded(ranked[k : k + 16], tokenizer, names) for k in range(0, len(ranked), 16)]
    return [found[k] for k in np.random.default_rng(0).permutation(len(found))]


def embeddings(model: bytes, feeds: dict[str, Array]) -> Array:
    """Return the mean of the token embeddings of each sentence."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    out = []
    for k in range(0, len(feeds["input_ids"]), 16):
        part = {name: a[k : k + 16] for name, a in feeds.items()}
        tokens, real = np.asarray(session.run(None, part)[0]), part["attention_mask"][..., None]
        out.append((tokens * real).sum(1) / real.sum(1))
    return np.concatenate(out)


def cosine(one: Array, other: Array) -> Array:
    """Return the cosine of each row."""
    return np.asarray((one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1))


def encoder_share(model: onnx.ModelProto) -> float:
    """Return the fraction of a model's parameters that are no lookup table."""
    sizes = {t.name: int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    tables = {n.input[0] for n in model.graph.node if n.op_type == "Gather"}
    return 1 - sum(size for name, size in sizes.items() if name in tables) / sum(sizes.values())


def main() -> None:
    """Prune, and print the cosine on every set of texts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--calibration", type=Path, nargs="+", required=True)
    parser.add_argument("--evaluate", nargs="+", action="append", required=True, metavar="NAME=FILE FILE ...")
    parser.add_argument("--remove", type=float, default=0.25, help="fraction of the encoder's parameters")
    parser.add_argument("--sentences", type=int, default=256)
    parser.add_argument("--effort", default="medium")
    parser.add_argument("--no-vary", action="store_true", help="use every sentence once")
    parser.add_argument("--save", type=Path)
    args = parser.parse_args()
    dense, tokenizer = onnx.load(args.model), Tokenizer.from_file(str(args.tokenizer))
    names = [i.name for i in dense.graph.input]
    calibration = batches(sentences(args.calibration, args.sentences), tokenizer, names)
    keep = 1 - args.remove * encoder_share(dense)
    result = graphprune.prune(
        args.model, target={"params": keep}, calibration=calibration, effort=args.effort, time=False,
        vary=not args.no_vary,
        adapters=False,  # so that all that goes is the encoder's: a narrower stream would make the tables smaller, too
    )
    before, after = (result.report[k]["parameters"] for k in ("before", "after"))
    print(f"parameters {before:,} -> {after:,}, {result.plan.meta.get('trials', 0)} trials")
    for first, *others in args.evaluate:
        name, _, path = first.partition("=")
        texts = sentences([Path(path), *map(Path, others)], args.sentences)
        feeds = encoded(texts, tokenizer, names)
        found = cosine(*(embeddings(m.SerializeToString(), feeds) for m in (dense, result.model)))
        print(f"{name}: mean cosine {found.mean():.4f} over {len(found)} sentences, the worst {found.min():.3f}")
    if args.save:
        result.save(args.save)


if __name__ == "__main__":
    main()
