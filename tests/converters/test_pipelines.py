"""Pruning as a step of other people's pipelines: a pass in Microsoft Olive, the recipe for Optimum's exports."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small import cnn, record
from test_sources import needs

STEPS = {
    "prune": {"type": "GraphPrune", "target": {"macs": 0.5}, "calibration": "images.npz",
              "options": {"time": False, "effort": "low", "align": 1}},
    "quantise": {"type": "OnnxDynamicQuantization"},
}


@needs("olive", "requests")
def test_a_workflow_of_olive_prunes_then_quantises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OLIVE_DISABLE_TELEMETRY", "1")
    from olive import run

    from graphprune.converters.olive import package_config

    onnx.save(cnn(), "net.onnx")
    np.savez("images.npz", x=np.random.default_rng(0).random((64, 3, 8, 8), np.float32))
    workflow = {
        "input_model": {"type": "OnnxModel", "model_path": "net.onnx"}, "passes": STEPS, "output_dir": "out",
        "cache_dir": "cache",
    }
    (made,) = run(workflow, package_config=package_config()).get_output_models()
    model = onnx.load(made.model_path)
    assert any(n.op_type == "DynamicQuantizeLinear" for n in model.graph.node)
    widths = [w.dims[0] for w in model.graph.initializer if len(w.dims) == 4]
    assert len(widths) == 2 and widths[0] < 32 and widths[1] < 48


@needs("optimum", "torch", "transformers")
def test_the_recipe_for_optimum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optimum.onnxruntime")
    monkeypatch.chdir(tmp_path)
    import torch
    import transformers
    from optimum.exporters.onnx import main_export
    from optimum.onnxruntime import ORTModelForSequenceClassification

    small: Any = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=50, **small)
    transformers.BertForSequenceClassification(config).save_pretrained("folder")
    main_export("folder", "out", task="text-classification", do_validation=False)
    Path("pruned").mkdir()
    record("prune", "out/model.onnx", "--sparsity", 0.5, "-o", "pruned/model.onnx", "--no-time", "--calibration", "off")
    shutil.copy("out/config.json", "pruned")
    model = ORTModelForSequenceClassification.from_pretrained("pruned")
    ids = torch.ones(2, 7, dtype=torch.long)
    assert model(input_ids=ids, attention_mask=ids).logits.shape == (2, 2)
    assert Path("pruned/model.onnx").stat().st_size < Path("out/model.onnx").stat().st_size
