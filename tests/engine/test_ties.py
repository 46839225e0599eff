"""Heads tied to embeddings: stored or not, the output is what every input says it is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from smelt.engine.merge import merge


def write(folder: Path, seed: int, head: str, tied: bool = True) -> str:
    """A model whose head is absent, a copy of the embedding, or its own."""
    draw = np.random.default_rng(seed)
    tensors = {"model.embed_tokens.weight": draw.normal(size=(20, 4)).astype(np.float32)}
    tensors["model.layers.0.mlp.up_proj.weight"] = draw.normal(size=(4, 4)).astype(np.float32)
    if head != "absent":
        own = draw.normal(size=(20, 4)).astype(np.float32)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy() if head == "copy" else own
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "llama", "num_hidden_layers": 1, "vocab_size": 20, "tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def linear(*models: str) -> dict:
    return {"merge_method": "linear", "models": [{"model": m, "parameters": {"weight": 1}} for m in models]}


@pytest.mark.parametrize("order", [0, 1])
def test_a_stored_copy_beside_a_tied_model_is_not_written(tmp_path: Path, order: int) -> None:
    models = [write(tmp_path / "a", 0, "absent"), write(tmp_path / "b", 1, "copy")]
    report = merge(linear(*(models if order else models[::-1])), tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True
    assert any("lm_head.weight is tied" in note for note in report.notes)


def test_stored_copies_stay_copies_under_random_masks(tmp_path: Path) -> None:
    base, one = write(tmp_path / "base", 0, "copy"), write(tmp_path / "one", 1, "copy")
    recipe = {
        "merge_method": "dare_linear", "base_model": base, "models": [{"model": one, "parameters": {"weight": 1}}],
        "parameters": {"density": 0.5},
    }  # fmt: skip
    merge(recipe, tmp_path / "out")
    made = load_file(tmp_path / "out" / "model.safetensors")
    assert (made["lm_head.weight"] == made["model.embed_tokens.weight"]).all()


def test_an_untied_model_beside_a_tied_one_gives_an_untied_output(tmp_path: Path) -> None:
    models = [write(tmp_path / "a", 0, "absent"), write(tmp_path / "b", 1, "own", tied=False)]
    merge(linear(*models), tmp_path / "out")
    made = load_file(tmp_path / "out" / "model.safetensors")
    a, b = (load_file(Path(model) / "model.safetensors") for model in models)
    expected = (a["model.embed_tokens.weight"].astype(np.float64) + b["lm_head.weight"]) / 2
    assert np.allclose(made["lm_head.weight"], expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
