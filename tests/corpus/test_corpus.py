"""Real models, where a folder of them is at hand: beside the repository, or named by GRAPHPRUNE_CORPUS."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from survey import survey_model

BESIDE = Path(__file__).parents[2].parent / "shared" / "corpus"
FOLDER = Path(os.environ.get("GRAPHPRUNE_CORPUS", BESIDE / "models"))
CATALOGUE = BESIDE / "catalog.json"
RECIPES = {r["file"]: r["recipe"] for r in json.loads(CATALOGUE.read_text())} if CATALOGUE.is_file() else {}
MODELS = sorted(FOLDER.glob("*.onnx")) if FOLDER.is_dir() else []


@pytest.mark.skipif(not MODELS, reason="no folder of real models here")
@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_real_model(path: Path) -> None:
    row = survey_model(path, RECIPES.get(path.name))
    assert row["outcome"] in ("ok", "nothing prunable"), row
    if row["outcome"] == "ok":
        assert row["proof"] <= row["tolerance"]
        assert row.get("recipe_proof", 0.0) <= row["tolerance"]
        assert row["kept"] < 1
        assert row["coverage"] > 0.25
