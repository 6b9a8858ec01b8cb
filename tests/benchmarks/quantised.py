"""Write the int8 versions of a Fashion-MNIST network that onnxruntime makes: dynamic, QDQ and QOperator.

    python tests/benchmarks/quantised.py zoo/residual.onnx --out int8 [--data FOLDER]
    python tests/benchmarks/accuracy.py int8 --targets 0.7 0.5 --set "weights alone: --criterion l2 --calibration off" \
        --set "data: --calibration {calibration}"

Static versions have 8 bits for inputs and weights, with a scale for each output channel, calibrated on 512 training
images. Needs the Fashion-MNIST files.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from accuracy import DATA, normalised, split
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from graphprune.runtime import Runtime, open_session

IMAGES, BATCH = 512, 64


class Images(CalibrationDataReader):  # type: ignore[misc]
    """Training images in batches."""

    def __init__(self, name: str, data: Path) -> None:
        images = normalised(split(data, "train")[0][:IMAGES])
        self.feeds: Iterator[dict[str, Any]] = iter([{name: images[k : k + BATCH]} for k in range(0, IMAGES, BATCH)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.feeds, None)


def written(model: Path, out: Path, data: Path) -> list[Path]:
    """Write all versions of a model into a folder; return the files."""
    out.mkdir(parents=True, exist_ok=True)
    name = open_session(str(model), Runtime()).get_inputs()[0].name
    files = [out / f"{model.stem}_{kind}.onnx" for kind in ("dynamic", "qdq", "qoperator")]
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.onnx"
        quant_pre_process(str(model), str(plain))
        quantize_dynamic(plain, files[0], weight_type=QuantType.QUInt8)
        for file, form in zip(files[1:], (QuantFormat.QDQ, QuantFormat.QOperator), strict=True):
            types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
            quantize_static(plain, file, Images(name, data), quant_format=form, per_channel=True, **types)
    return files


def main(words: list[str] | None = None) -> None:
    """Quantise one network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, default=Path("int8"))
    parser.add_argument("--data", type=Path, default=DATA)
    args = parser.parse_args(words)
    for file in written(args.model, args.out, args.data):
        print(file)


if __name__ == "__main__":
    main()
