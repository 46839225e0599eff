"""Models that number tokens differently are refused, unless the user says that rows fit by position."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from smelt.core.errors import PlanError
from smelt.engine.plan import Settings, plan_merge


def write(folder: Path, seed: int, vocabulary: dict[str, int]) -> str:
    """A model with a tokenizer."""
    folder.mkdir()
    rows = np.random.default_rng(seed).normal(size=(8, 4)).astype(np.float32)
    save_file({"model.embed_tokens.weight": rows}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"vocab_size": 8}))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
    return str(folder)


def recipe(*models: str, **more: object) -> dict:
    return {
        "merge_method": "linear",
        "models": [{"model": m, "parameters": {"weight": 1}} for m in models],
        **more,
    }


def test_swapped_tokens_are_refused_and_may_be_waved_through(tmp_path: Path) -> None:
    models = [write(tmp_path / "a", 0, {"x": 0, "y": 1}), write(tmp_path / "b", 1, {"x": 1, "y": 0})]
    with pytest.raises(PlanError, match=r"number 2 tokens differently.*--by-position"):
        plan_merge(recipe(*models))
    plan = plan_merge(recipe(*models), Settings(by_position=True))
    assert any("merged by position" in note for note in plan.notes)
    plan.close()


def test_tokens_that_only_one_model_has_are_noted(tmp_path: Path) -> None:
    models = [write(tmp_path / "a", 0, {"x": 0, "y": 1}), write(tmp_path / "b", 1, {"x": 0, "y": 1, "z": 2})]
    plan = plan_merge(recipe(*models))
    assert any("only one of" in note for note in plan.notes)
    plan.close()


def test_equal_vocabularies_satisfy_any_tokenizer_source(tmp_path: Path) -> None:
    models = [write(tmp_path / name, number, {"x": 0}) for number, name in enumerate("ab")]
    plan_merge(recipe(*models, tokenizer_source="union")).close()
    with pytest.raises(PlanError, match="aligning different ones is not built yet"):
        other = write(tmp_path / "c", 2, {"x": 0, "q": 1})
        plan_merge(recipe(models[0], other, tokenizer_source="union"))
