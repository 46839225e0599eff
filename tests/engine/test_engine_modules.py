"""Models of several parts: each part with its own recipe, all tensors in one of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_tools import entry, make, planned, source

import tiny
from smelt.core.errors import PlanError


def two_towers(folder: Path, seed: int, experts: bool = False) -> tiny.Model:
    """A language tower of three layers, a vision tower of two, and a projector."""
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"language_model.model.embed_tokens.weight": (16, 4)}
    for layer in range(3):
        shapes[f"language_model.model.layers.{layer}.mlp.up_proj.weight"] = (6, 4)
        if experts and layer:
            shapes[f"language_model.model.layers.{layer}.mlp.experts.0.w.weight"] = (6, 4)
    for layer in range(2):
        shapes[f"vision_tower.encoder.layers.{layer}.fc1.weight"] = (5, 3)
    shapes |= {"multi_modal_projector.linear.weight": (4, 3), "language_model.lm_head.weight": (16, 4)}
    tensors = {
        name: ("F32", shape, random.normal(size=shape).astype(np.float32).tobytes())
        for name, shape in shapes.items()
    }
    folder.mkdir()
    tiny.write_safetensors(folder / "model.safetensors", tensors)
    config = {
        "model_type": "llava", "architectures": ["LlavaForConditionalGeneration"],
        "text_config": {"num_hidden_layers": 3, "vocab_size": 16, "tie_word_embeddings": False},
        "vision_config": {"num_hidden_layers": 2},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return tiny.read(folder)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[tiny.Model, tiny.Model]:
    return two_towers(tmp_path / "a", 1), two_towers(tmp_path / "b", 2)


def recipe(modules: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"merge_method": "linear", "modules": modules, **more}


def test_every_part_has_its_own_models_and_settings(
    pair: tuple[tiny.Model, tiny.Model], tmp_path: Path
) -> None:
    a, b = pair
    modules = {
        "language_model": {"models": [entry(a, weight=[0, 1]), entry(b, weight=[1, 0])]},
        "vision_tower": {"models": [entry(b)], "parameters": {"weight": 1.0}},
        "default": {"models": [entry(a, weight=1), entry(b, weight=3)]},
    }
    _, out = make(recipe(modules), tmp_path / "out")
    for layer, t in enumerate((0, 0.5, 1)):
        name = f"language_model.model.layers.{layer}.mlp.up_proj.weight"
        assert (out.values[name] == np.float32(t * a.values[name] + (1 - t) * b.values[name])).all()
    vision = "vision_tower.encoder.layers.1.fc1.weight"
    assert (out.values[vision] == b.values[vision]).all()
    projector = "multi_modal_projector.linear.weight"
    assert (out.values[projector] == np.float32((a.values[projector] + 3 * b.values[projector]) / 4)).all()
    assert set(out.values) == set(a.values)


def test_a_gradient_runs_over_each_tower(pair: tuple[tiny.Model, tiny.Model]) -> None:
    plan = planned({"merge_method": "linear", "models": [entry(model, weight=[1, 2]) for model in pair]})
    vision = [
        plan.job(f"vision_tower.encoder.layers.{layer}.fc1.weight").params["weight"][0] for layer in range(2)
    ]
    text = [
        plan.job(f"language_model.model.layers.{layer}.mlp.up_proj.weight").params["weight"][0]
        for layer in range(3)
    ]
    assert vision == [1, 2] and text == [1, 1.5, 2]


def test_slices_inside_a_part(tmp_path: Path) -> None:
    """Layers that the first one does not resemble (experts after a dense layer) come along."""
    a = two_towers(tmp_path / "a", 1, experts=True)
    modules = {
        "language_model": {"slices": [{"sources": [source(a, 0, 3)]}, {"sources": [source(a, 1, 3)]}]},
        "default": {"models": [entry(a)]},
    }
    _, out = make(recipe(modules) | {"merge_method": "passthrough"}, tmp_path / "out")
    for layer, inner in enumerate((0, 1, 2, 1, 2)):
        for rest in ("up_proj.weight", "experts.0.w.weight"):
            name, origin = (f"language_model.model.layers.{i}.mlp.{rest}" for i in (layer, inner))
            assert (name in out.values) == (origin in a.values)
            assert name not in out.values or (out.values[name] == a.values[origin]).all()
    assert out.config["text_config"]["num_hidden_layers"] == 5
    assert out.config["vision_config"]["num_hidden_layers"] == 2
    assert "vision_tower.encoder.layers.1.fc1.weight" in out.values


def test_a_part_without_tensors_is_refused_with_the_parts_there_are(
    pair: tuple[tiny.Model, tiny.Model],
) -> None:
    modules = {name: {"models": [entry(pair[0], weight=1)]} for name in ("audio_tower", "default")}
    with pytest.raises(
        PlanError, match=r"modules.audio_tower: no tensor belongs.*language_model.*vision_tower"
    ):
        planned(recipe(modules))


def test_tensors_of_no_part_are_refused(pair: tuple[tiny.Model, tiny.Model]) -> None:
    modules = {"language_model": {"models": [entry(pair[0], weight=1)]}}
    with pytest.raises(
        PlanError, match=r"modules: 3 tensors belong to no module .*add a module named default"
    ):
        planned(recipe(modules))
