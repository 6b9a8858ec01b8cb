"""What each part of pruning without training is worth: one thing is changed at a time, accuracy on all test images.

    python samples/4_train_zoo.py --out zoo
    python tests/benchmarks/ablation.py zoo/plain.onnx zoo/inverted.onnx [--target 0.25] [--json out.json]

The way that everything else is compared with is the default with data: criterion obs, allocation error, repair matched,
512 unlabelled training images. Out-of-distribution are letters and digits, drawn white on black with Pillow's own font.
Other criteria than obs are allocated uniformly, and so is the obs beside them.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import DATA, accuracy, normalised, pruned, split
from PIL import Image, ImageDraw, ImageFont

GIVEN = "--calibration {given}"
WAYS: dict[str, dict[str, str]] = {
    "criterion (uniform)": {
        "l2": f"{GIVEN} --criterion l2",
        "wanda": f"{GIVEN} --criterion wanda",
        "flap": f"{GIVEN} --criterion flap",
        "obs": f"{GIVEN} --allocation uniform",
    },
    "allocation": {
        "uniform": f"{GIVEN} --allocation uniform",
        "global": f"{GIVEN} --allocation global",
        "error": GIVEN,
    },
    "widths without a basis": {
        "left as they are": f"{GIVEN} --no-turn",
        "turned": GIVEN,
    },
    "repair": {
        "none": f"{GIVEN} --repair none",
        "weights": f"{GIVEN} --repair weights",
        "bias": f"{GIVEN} --repair bias",
        "symmetric": f"{GIVEN} --repair symmetric",
        "sequential": f"{GIVEN} --repair sequential",
        "matched (with recalibration)": GIVEN,
    },
    "data": {
        "noise": "--calibration noise",
        "none (made up)": "--calibration none",
        "out-of-distribution": "--calibration ood:{letters}",
        "in-distribution": GIVEN,
    },
}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


def letters(count: int, seed: int = 0) -> np.ndarray:
    """Return raw images [n, 28, 28] of letters and digits of several sizes and at several places."""
    rng = np.random.default_rng(seed)
    out = np.zeros((count, 28, 28), np.uint8)
    for k in range(count):
        image = Image.new("L", (28, 28))
        font = ImageFont.load_default(int(rng.integers(16, 30)))
        place = tuple(float(v) for v in rng.integers(-1, 8, 2) - [0, 4])
        ImageDraw.Draw(image).text(place, str(rng.choice(list(LETTERS))), fill=int(rng.integers(120, 256)), font=font)
        out[k] = np.asarray(image)
    return out


def rows_of(path: Path, target: float, align: int, folder: Path) -> list[dict[str, Any]]:
    """Measure one network, dense and pruned in every way; what two parts of the table share is run once."""
    test = split(DATA, "t10k")
    rows: list[dict[str, Any]] = [{"network": path.stem, "part": "", "way": "dense", "accuracy": accuracy(path, *test)}]
    known: dict[str, tuple[float, float]] = {}
    for part, ways in WAYS.items():
        for way, text in ways.items():
            options = text.format(given=folder / "given.npz", letters=folder / "letters.npz")
            if options not in known:
                out, kept, _ = pruned(path, target, [*shlex.split(options), "--align", str(align)], folder)
                known[options] = kept, accuracy(out, *test)
            kept, right = known[options]
            rows.append({"network": path.stem, "part": part, "way": way, "macs": kept, "accuracy": right})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Return results as a Markdown table with a column for each network."""
    networks = list(dict.fromkeys(r["network"] for r in rows))
    found = {(r["network"], r["part"], r["way"]): 100 * r["accuracy"] for r in rows}
    heads = [f"{n} ({found[n, '', 'dense']:.1f})" for n in networks]
    lines = ["| part | way | " + " | ".join(heads) + " |", "|---" * (2 + len(networks)) + "|"]
    for part, ways in WAYS.items():
        for way in ways:
            lines.append(f"| {part} | {way} | " + " | ".join(f"{found[n, part, way]:.1f}" for n in networks) + " |")
    return "\n".join(lines)


def main(words: list[str] | None = None) -> None:
    """Measure networks and print the table."""
    parser = argparse.ArgumentParser(description="What each part of pruning without training is worth.")
    parser.add_argument("networks", type=Path, nargs="+")
    parser.add_argument("--target", type=float, default=0.25, help="fraction of the multiply-accumulates to keep")
    parser.add_argument("--align", type=int, default=4)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    args = parser.parse_args(words)
    images = split(DATA, "train")[0]
    chosen = np.random.default_rng(0).permutation(len(images))[: args.samples]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "given.npz", image=normalised(images[chosen]))
        np.savez(folder / "letters.npz", image=normalised(letters(args.samples)))
        rows = [r for path in args.networks for r in rows_of(path, args.target, args.align, folder)]
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
