"""Prune the text recogniser of PP-OCRv4 with rendered lines of text, without training, and count the characters.

Needs the recogniser as an ONNX file whose metadata have the list of characters (``ch_PP-OCRv4_rec_infer.onnx`` of
RapidOCR, say), Pillow, and TrueType fonts. Lines to calibrate with and lines to test on come from different halves of a
text, are drawn in different fonts, and no label is used for anything but counting.

    python samples/5_prune_ppocr.py rec.onnx --text TEXT --fonts FOLDER [--targets 0.85 0.7]

Character accuracy is 1 - (edit distance / length), over all test lines.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from PIL import Image, ImageDraw, ImageFont

import graphprune

HEIGHT, WIDTH = 48, 320


def lines_of(path: Path, longest: int = 26) -> list[str]:
    """Return lines of at most so many characters, of the printable ASCII in a text."""
    words = [w for w in path.read_text("utf-8", "ignore").split() if w.isascii() and w.isprintable() and len(w) < 20]
    lines, line = [], ""
    for word in words:
        if line and len(line) + 1 + len(word) > longest:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return list(dict.fromkeys([*lines, line] if line else lines))


def drawn(line: str, font: Path, rng: np.random.Generator) -> np.ndarray:
    """Return a line of text as the recogniser takes it, [3, 48, 320] in -1..1: dark on light, a little noise."""
    paper, ink = rng.integers(180, 256, 3), rng.integers(0, 90, 3)
    face = ImageFont.truetype(str(font), 40)
    _, top, right, bottom = face.getbbox(line)
    image = Image.new("RGB", (int(right) + 16, int(bottom - top) + 12), tuple(int(v) for v in paper))
    ImageDraw.Draw(image).text((8, 6 - top), line, fill=tuple(int(v) for v in ink), font=face)
    width = min(WIDTH, round(image.width * HEIGHT / image.height))
    pixels = np.asarray(image.resize((width, HEIGHT), Image.Resampling.BICUBIC), np.float32)
    pixels = np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255)[..., ::-1] / 127.5 - 1
    out = np.zeros((3, HEIGHT, WIDTH), np.float32)  # the rest stays 0, as in PaddleOCR
    out[:, :, :width] = pixels.transpose(2, 0, 1)
    return out


def images_of(lines: list[str], fonts: list[Path], seed: int) -> np.ndarray:
    """Return images of lines, [n, 3, 48, 320], each in one of the fonts."""
    rng = np.random.default_rng(seed)
    return np.stack([drawn(line, fonts[int(rng.integers(len(fonts)))], rng) for line in lines])


def read(model: bytes, images: np.ndarray, characters: list[str]) -> list[str]:
    """Return what a recogniser reads: the likeliest character at each place, repeats once, blanks left out."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    name, out = session.get_inputs()[0].name, []
    for k in range(0, len(images), 8):
        best = session.run(None, {name: images[k : k + 8]})[0].argmax(2)
        for row in best:
            kept = [int(c) for c, before in zip(row, [0, *row[:-1]], strict=True) if c and c != before]
            out.append("".join(characters[c - 1] for c in kept))
    return out


def edits(one: str, other: str) -> int:
    """Return how many characters have to be changed, put in or left out to turn one text into the other."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def accuracy(model: bytes, images: np.ndarray, lines: list[str], characters: list[str]) -> float:
    """Return the share of characters that are read right."""
    wrong = sum(edits(a, b) for a, b in zip(read(model, images, characters), lines, strict=True))
    return 1 - wrong / sum(len(line) for line in lines)


def characters_of(model: onnx.ModelProto) -> list[str]:
    """Return the list of characters in a model's metadata; class 0 is the blank, the last one a space."""
    listed = next((p.value for p in model.metadata_props if p.key == "character"), None)
    if listed is None:
        raise SystemExit("the model's metadata have no list of characters")
    return [*listed.removesuffix("\n").split("\n"), " "]


def main() -> None:
    """Prune to each target and print the table."""
    parser = argparse.ArgumentParser(description="Prune the text recogniser of PP-OCRv4 without training.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, default=Path("/usr/share/common-licenses/GPL-3"))
    parser.add_argument("--fonts", type=Path, default=Path("/usr/share/fonts/truetype/dejavu"))
    parser.add_argument("--targets", type=float, nargs="+", default=[0.85, 0.7])
    parser.add_argument("--samples", type=int, default=128, help="lines to calibrate with")
    parser.add_argument("--tests", type=int, default=200, help="lines to test on")
    args = parser.parse_args()

    lines, fonts = lines_of(args.text), sorted(args.fonts.glob("*.ttf"))
    half = len(lines) // 2
    rng = np.random.default_rng(0)
    to_fit = [lines[k] for k in rng.permutation(half)[: args.samples]]
    to_test = [lines[half + k] for k in rng.permutation(len(lines) - half)[: args.tests]]
    known, unknown = images_of(to_fit, fonts[::2], 1), images_of(to_test, fonts[1::2], 2)

    dense = onnx.load(args.model)
    characters = characters_of(dense)
    name = dense.graph.input[0].name
    print(f"| MACs kept | character accuracy on {len(to_test)} lines |\n|---|---|")
    print(f"| dense | {100 * accuracy(dense.SerializeToString(), unknown, to_test, characters):.2f} |", flush=True)
    for target in args.targets:
        options: dict[str, Any] = {"input_shapes": {name: (1, 3, HEIGHT, WIDTH)}, "calibration": {name: known}}
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "pruned.onnx"
            done = graphprune.prune(args.model, target={"macs": target}, output=out, time=False, **options)
            kept = done.report["after"]["macs"] / done.report["before"]["macs"]
            right = accuracy(out.read_bytes(), unknown, to_test, characters)
        print(f"| {kept:.2f} | {100 * right:.2f} |", flush=True)


if __name__ == "__main__":
    main()
