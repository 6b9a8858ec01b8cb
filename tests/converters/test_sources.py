"""Models of other frameworks become ONNX that computes the same, and errors say what to install or to give."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small import cli, record, refused

from graphprune.converters import Asked, Converted, framework_of, is_source, to_onnx
from graphprune.converters.parity import parity
from graphprune.errors import ModelError, UsageError, ValidationError
from graphprune.runtime import Runtime, open_session, run


def needs(*packages: str) -> Any:
    """Skip a test where a package is missing, and say which."""
    missing = [p for p in packages if importlib.util.find_spec(p) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{' and '.join(missing)} not installed")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    sys.modules.pop("nets", None)


def close(source: str, folder: Path, **asked: Any) -> onnx.ModelProto:
    """Convert, and compare outputs at a batch that no exporter saw."""
    converted = to_onnx(source, Asked(**asked))
    onnx.save(converted.model, folder / "out.onnx")
    error = parity(converted, folder / "out.onnx")
    assert error is not None and error < 1e-5
    return converted.model


def batch_of(model: onnx.ModelProto) -> list[int]:
    return [v.type.tensor_type.shape.dim[0].dim_value for v in (*model.graph.input, *model.graph.output)]


def test_sources_are_told_from_onnx(tmp_path: Path) -> None:
    assert all(is_source(s) for s in ("a.keras", "a.h5", "a.tflite", "a.pt2", "a.joblib", "nets:net", "nets.zoo:a.b"))
    assert not any(is_source(s) for s in ("model.onnx", "model", "C:\\a.onnx", tmp_path, "a:b.onnx/c"))
    for name, framework in (("saved_model.pb", "TensorFlow"), ("config.json", "Hugging Face")):
        folder = tmp_path / framework
        folder.mkdir()
        (folder / name).touch()
        assert is_source(folder) and framework_of(folder).name == framework
    (tmp_path / "net.unknown").touch()
    for source, error in ((tmp_path / "net.unknown", UsageError), (tmp_path, UsageError), ("no.keras", ModelError)):
        with pytest.raises(error):
            framework_of(source)


@pytest.mark.parametrize(("name", "says"), [
    ("net.keras", "converting from Keras needs keras and tensorflow and tf2onnx: pip install 'graphprune[keras]'"),
    ("net.tflite", "pip install 'graphprune[keras]'"),
    ("net.pt2", "pip install 'graphprune[torch]'"),
    ("net.joblib", "pip install 'graphprune[sklearn]'"),
    ("net.pdmodel", "pip install 'graphprune[paddle]'"),
])
def test_what_is_missing_is_told(name: str, says: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / name).touch()
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n: real(n) if n.startswith("graphprune") else None)
    refused(here, "convert", name, "-o", "net.onnx", says=says)


@pytest.mark.parametrize(("source", "says"), [
    ("nowhere:net", "no module 'nowhere'"),
    ("nets:other", "has no attribute 'other'"),
    ("nets:number", "is a int, which is no model"),
    ("nets:broken", "making the model failed: ValueError: on purpose"),
    ("no.keras", "no such file"),
    ("model.onnx", "is ONNX already"),
])
def test_objects_that_are_no_models_are_told(source: str, says: str, here: Path) -> None:
    (here / "nets.py").write_text("number = 3\ndef broken():\n    raise ValueError('on purpose')\n")
    refused(here, "convert", source, "-o", "net.onnx", says=says) if source != "nets:broken" else None
    if source == "nets:broken":
        with pytest.raises(UsageError, match=says):
            framework_of(source)


PERCEPTRON = """
import numpy as np
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
rng = np.random.default_rng(0)
x, y = rng.standard_normal((200, 20)), rng.integers(0, 4, 200)
net = MLPClassifier((64, 32), max_iter=3).fit(x, y)
both = make_pipeline(StandardScaler(), MLPClassifier((16,), max_iter=3)).fit(x, y)
unfitted = MLPClassifier()
"""


@pytest.fixture
def perceptron(here: Path) -> Path:
    (here / "nets.py").write_text("import warnings\nwarnings.simplefilter('ignore')" + PERCEPTRON)
    return here


@needs("sklearn", "skl2onnx")
def test_perceptrons_give_probabilities(perceptron: Path) -> None:
    for name in ("nets:net", "nets:both"):
        model = close(name, perceptron)
        assert batch_of(model) == [0, 0] and len(model.graph.output) == 1
        assert {op.domain for op in model.graph.node} == {""}
    fixed = to_onnx("nets:net", Asked(fixed=True, opset=17)).model
    assert batch_of(fixed) == [1, 1] and {o.domain: o.version for o in fixed.opset_import}[""] == 17
    with pytest.raises(UsageError, match="is not fitted"):
        to_onnx("nets:unfitted")


@needs("sklearn", "skl2onnx")
def test_pickles_have_to_be_trusted_and_are_pruned(perceptron: Path) -> None:
    import joblib
    import nets  # type: ignore[import-not-found]

    joblib.dump(nets.net, perceptron / "net.joblib")
    refused(perceptron, "convert", "net.joblib", "-o", "net.onnx", says="runs code that is in it: --trust allows it")
    got = record("convert", "net.joblib", "-o", "net.onnx", "--trust")
    assert got["framework"] == "scikit-learn" and got["compared"] and got["max_relative_difference"] < 1e-5
    assert got["inputs"] == {"x": ["None", "20"]} and got["opset"] == 18
    refused(perceptron, "convert", "net.joblib", "-o", "net.onnx", "--trust", says="exists")
    assert "outputs differ by" in cli("convert", "net.joblib", "-o", "net.onnx", "--trust", "--force").out
    options = ("--sparsity", 0.5, "--align", 1, "--calibration", "off", "--no-time")
    pruned = record("prune", "net.joblib", "--trust", *options)
    assert pruned["after"]["macs"] < 0.6 * pruned["before"]["macs"] and pruned["output"] == "net.pruned.onnx"
    assert (perceptron / "net.pruned.onnx").is_file()
    assert record("prune", "nets:net", "-o", "other.onnx", *options)["after"] == pruned["after"]


@needs("sklearn", "skl2onnx")
def test_python_prunes_sources_too(perceptron: Path) -> None:
    import joblib
    import nets

    import graphprune

    joblib.dump(nets.net, "net.joblib")
    options: Any = {"align": 1, "calibration": "off", "time": False}
    results = [
        graphprune.prune("nets:net", 0.5, **options), graphprune.prune(Path("net.joblib"), 0.5, trust=True, **options)
    ]
    assert results[0].report["after"] == results[1].report["after"] and results[0].plan.keep == results[1].plan.keep
    assert results[0].report["after"]["macs"] < 0.6 * results[0].report["before"]["macs"]
    with pytest.raises(UsageError, match="--trust"):
        graphprune.prune("net.joblib", 0.5)


@needs("sklearn", "skl2onnx")
def test_a_conversion_that_computes_something_else_is_refused(perceptron: Path) -> None:
    good = to_onnx("nets:net")
    onnx.save(good.model, perceptron / "out.onnx")
    assert good.run is not None
    honest = good.run
    for run_wrong, says in (
        (lambda arrays: [honest(arrays)[0] * 1.01], "is off by"),
        (lambda arrays: [honest(arrays)[0][:, :2]], "the source's is"),
        (lambda arrays: [], "has 1 outputs, the source 0"),
    ):
        with pytest.raises(ValidationError, match=says):
            parity(Converted(good.model, run_wrong), perceptron / "out.onnx")
    assert parity(Converted(good.model), perceptron / "out.onnx") is None


TORCH = """
import torch
from torch import nn
torch.manual_seed(0)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.deep, self.head = nn.Conv2d(3, 16, 3, 2), nn.Conv2d(16, 24, 3), nn.Linear(24, 5)

    def forward(self, image):
        x = torch.relu(self.deep(torch.relu(self.stem(image))))
        return self.head(x.mean((2, 3)))

class Stiff(Net):
    def forward(self, image):
        return super().forward(image.reshape(2, 3, 16, 16))

net, stiff = Net(), Stiff()
"""


@needs("torch", "onnxscript")
def test_batch_normalisations_are_kept_for_training(here: Path) -> None:
    (here / "normed.py").write_text(NORMED)
    import normed
    import torch

    shapes = {"image": (1, 3, 8, 8)}
    x = torch.randn(2, 3, 8, 8)
    torch.export.save(torch.export.export(normed.net, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)), "net.pt2")
    for source, asked in (("net.pt2", {}), ("normed:net", {"shapes": shapes})):
        folded, kept = (kinds(close(source, here, **asked, norms=norms)) for norms in (False, True))
        assert folded["BatchNormalization"] == 0 and kept["BatchNormalization"] == 2
        assert set(kept) <= {*folded, "BatchNormalization", "Constant", "Shape", "Concat", "Squeeze", "Gather"}
    torch.jit.save(torch.jit.trace(normed.net, x), "net.pt")
    with pytest.raises(UsageError, match="the exporter of TorchScript always folds"):
        to_onnx("net.pt", Asked(shapes=shapes, norms=True))
    with pytest.raises(UsageError, match="scikit-learn always folds"):
        (here / "net.joblib").touch()
        to_onnx("net.joblib", Asked(norms=True, trust=True))


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


NORMED = """
import torch
from torch import nn
torch.manual_seed(0)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3),
                                  nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
        for k in (1, 4):
            nn.init.uniform_(self.body[k].running_var, 0.5, 2)

    def forward(self, image):
        return self.body(image)

net = Net().eval()
"""


@needs("torch", "onnxscript")
def test_torch_modules_programs_and_scripts(here: Path) -> None:
    (here / "nets.py").write_text(TORCH)
    import torch

    shapes = {"image": (1, 3, 16, 16)}
    assert batch_of(close("nets:net", here, shapes=shapes)) == [0, 0]
    with pytest.raises(UsageError, match=r"its inputs are image: give their sizes by --input-shape image:1,\.\.\."):
        to_onnx("nets:net")
    stiff = to_onnx("nets:stiff", Asked(shapes={"image": (2, 3, 16, 16)}))
    assert batch_of(stiff.model) == [2, 2] and "the batch stays 2" in stiff.notes[0]
    import nets

    x = torch.randn(2, 3, 16, 16)
    torch.export.save(torch.export.export(nets.net, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)), "net.pt2")
    assert batch_of(close("net.pt2", here)) == [0, 0]
    torch.jit.save(torch.jit.trace(nets.net, x), "net.pt")
    assert batch_of(close("net.pt", here, shapes=shapes)) == [0, 0]
    torch.save(nets.net.state_dict(), "net.pth")
    with pytest.raises(UsageError, match="is not TorchScript: it holds weights"):
        to_onnx("net.pth")


@needs("transformers", "torch", "onnxscript")
def test_hugging_face_folders(here: Path) -> None:
    import transformers

    small: Any = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    bert = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=50, **small))
    bert.save_pretrained(here / "bert")
    model = close("bert", here)
    assert [v.name for v in model.graph.input] == ["input_ids", "attention_mask"]
    assert [v.name for v in model.graph.output] == ["logits"] and batch_of(model) == [0, 0, 0]


KERAS = """
import keras
from keras import layers
image = keras.Input((16, 16, 3), name="image")
x = layers.BatchNormalization()(layers.Conv2D(16, 3, 2, activation="relu")(image))
net = keras.Model(image, layers.Dense(5)(layers.GlobalAveragePooling2D()(x)))
"""


@needs("keras", "tensorflow", "tf2onnx")
def test_keras_files_saved_models_and_tflite(here: Path) -> None:
    (here / "nets.py").write_text(KERAS)
    import nets
    import tensorflow as tf

    nets.net.save("net.keras")
    nets.net.save("net.h5")
    nets.net(np.zeros((1, 16, 16, 3), np.float32))
    nets.net.export("saved", format="tf_saved_model", verbose=False)
    Path("net.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(nets.net).convert())
    for source in ("nets:net", "net.keras", "net.h5", "saved", "net.tflite"):
        assert batch_of(close(source, here)) == [0, 0], source


JAX = """
import jax
import jax.numpy as jnp
from flax import nnx
net = nnx.Sequential(nnx.Linear(8, 32, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(32, 5, rngs=nnx.Rngs(1)))
weights = jax.random.normal(jax.random.key(0), (8, 5))

def product(x):
    return jnp.tanh(x @ weights)
"""


@needs("jax", "flax", "jax2onnx")
def test_jax_functions_and_flax_modules(here: Path) -> None:
    (here / "nets.py").write_text(JAX)
    for source in ("nets:product",):
        assert batch_of(close(source, here, shapes={"x": (1, 8)})) == [0, 0]
    with pytest.raises(UsageError, match="its inputs are x"):
        to_onnx("nets:product")


PADDLE = """
import paddle
from paddle import nn
net = nn.Sequential(nn.Conv2D(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(16, 5))
net.eval()
paddle.jit.save(net, "net", input_spec=[paddle.static.InputSpec([None, 3, 16, 16], "float32", "x")])
"""


@needs("paddle", "paddle2onnx")
def test_paddle_inference_models(here: Path) -> None:
    exec(PADDLE, {})
    assert batch_of(close("net.pdiparams", here)) == [0, 0]
    (here / "alone.pdiparams").touch()
    with pytest.raises(UsageError, match="is two files"):
        to_onnx("alone.pdiparams")


def test_the_core_imports_no_converter() -> None:
    assert not {"keras", "tensorflow", "jax", "sklearn", "paddle"} & {
        name.split(".")[0] for name in _loaded("import graphprune.cli, graphprune.converters")
    }


def _loaded(code: str) -> list[str]:
    import json
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import json, sys; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True, text=True, check=True,
    )
    return list(json.loads(done.stdout))


def test_a_converted_model_runs_at_other_batches(here: Path) -> None:
    if importlib.util.find_spec("skl2onnx") is None:
        pytest.skip("skl2onnx not installed")
    (here / "nets.py").write_text("import warnings\nwarnings.simplefilter('ignore')" + PERCEPTRON)
    onnx.save(to_onnx("nets:net").model, here / "net.onnx")
    session = open_session(str(here / "net.onnx"), Runtime())
    for batch in (1, 7):
        assert run(session, {"x": np.zeros((batch, 20), np.float32)})["probabilities"].shape == (batch, 4)
