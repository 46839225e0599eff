"""What a merge tells though it goes on: conditions that never apply, nothing to merge, no config; and overflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_tools import entry, left_behind, linear, make, planned

import tiny
from smelt import merge_state_dicts, merge_tensors
from smelt.arch import check_agreement
from smelt.core.errors import PlanError, VerificationError
from smelt.core.types import TensorMeta


@pytest.fixture
def models(tmp_path: Path) -> dict[str, tiny.Model]:
    return tiny.family(tmp_path / "in", "a", "b")


def filters_in(notes: list[str]) -> list[str]:
    return [note for note in notes if "matches no tensor" in note]


def test_a_filter_that_matches_nothing_is_told_with_its_place(models: dict[str, tiny.Model]) -> None:
    weight = [{"filter": "self_atn", "value": 0.2}, {"filter": "mlp", "value": 0.3}, {"value": 0.5}]
    recipe = {
        "merge_method": "linear",
        "models": [entry(models["a"], weight=weight), entry(models["b"], weight={"filter": "/^lm_hed/", "value": 1})],
        "parameters": {"weight": [{"filter": "*.norm.*", "value": 1.0}, {"value": 0.1}]},
    }  # fmt: skip
    notes = filters_in(planned(recipe).notes)
    assert [note.split(":")[0] for note in notes] == [
        "models[0].parameters.weight[0].filter", "models[1].parameters.weight.filter",
    ]  # fmt: skip
    assert "did you mean 'self_attn'?" in notes[0]


def test_filters_of_slices_are_held_against_the_names_in_each_model(models: dict[str, tiny.Model]) -> None:
    def source(name: str, first: int, pattern: str) -> dict[str, Any]:
        weight = [{"filter": pattern, "value": 0.2}, {"value": 1}]
        return entry(models[name], weight=weight) | {"layer_range": [first, first + 1]}

    recipe = {
        "merge_method": "linear",
        "slices": [{"sources": [source("a", 1, "layers.1."), source("b", 0, "layers.7.")]}],
    }
    notes = filters_in(planned(recipe).notes)
    assert [note.split(":")[0] for note in notes] == ["slices[0].sources[1].parameters.weight[0].filter"]
    assert "names are made of" in notes[0] or "did you mean" in notes[0]


def test_nested_recipes_are_looked_at_too(models: dict[str, tiny.Model]) -> None:
    inner = linear(
        (models["a"], 1.0), (models["b"], 1.0), parameters={"weight": {"filter": "zzz", "value": 3}}
    )
    notes = filters_in(planned(linear((inner, 1.0), (models["b"], 1.0))).notes)
    assert [note.split(": the filter")[0] for note in notes] == [
        "in the nested linear recipe, parameters.weight.filter"
    ]


@pytest.mark.parametrize("method", ["ties", "task_arithmetic", "dare_ties"])
@pytest.mark.parametrize("listed", [True, False])
def test_only_the_base_gives_the_base_and_says_so(
    models: dict[str, tiny.Model], tmp_path: Path, method: str, listed: bool
) -> None:
    recipe = {"merge_method": method, "base_model": str(models["base"]), "models": [entry(models["base"])]}
    if not listed:
        recipe["slices"] = [{"sources": [entry(models["base"]) | {"layer_range": [0, 2]}]}]
        del recipe["models"]
    report, out = make(recipe, tmp_path / "out")
    assert any("no model besides the base" in note for note in report.notes)
    assert tiny.tensor_bytes(out.path) == tiny.tensor_bytes(models["base"].path)


def test_a_model_without_config_is_merged_and_told(models: dict[str, tiny.Model], tmp_path: Path) -> None:
    for model in models.values():
        (model.path / "config.json").unlink()
    report, _ = make(linear((models["a"], 1.0), (models["b"], 1.0)), tmp_path / "out")
    assert any("has no config.json" in note for note in report.notes)
    assert not (tmp_path / "out" / "config.json").exists()


def test_float16_that_overflows_is_named_as_such(tmp_path: Path) -> None:
    models = tiny.family(tmp_path / "in", "a", "b", dtype="F16")
    recipe = linear((models["a"], 1e6), (models["b"], 1e6), parameters={"normalize": False})
    with pytest.raises(VerificationError, match=r"float16 ends at 65504.*bfloat16 or float32"):
        make(recipe, tmp_path / "out")
    assert left_behind(tmp_path, "in") == []


def test_results_in_memory_have_the_dtype_asked_for() -> None:
    import torch

    a, b = torch.full((3,), 1.0), torch.full((3,), 2.0)
    assert merge_tensors("linear", [a, b], weight=0.5).dtype == torch.float32
    for dtype in ("bfloat16", torch.bfloat16, "BF16"):
        found = merge_tensors("linear", [a, b], weight=0.5, dtype=dtype)
        assert found.dtype == torch.bfloat16 and found.tolist() == [1.5] * 3
    states = [{"w": a, "steps": torch.tensor([3])}, {"w": b, "steps": torch.tensor([4])}]
    merged = merge_state_dicts("linear", states, weight=0.5, dtype="float64")
    assert merged["w"].dtype == torch.float64 and merged["steps"].dtype == torch.int64


def test_dtypes_that_cannot_be_given_are_refused() -> None:
    ones = np.ones(2, np.float32)
    with pytest.raises(PlanError, match="did you mean 'float32'"):
        merge_tensors("linear", [ones, ones], weight=0.5, dtype="float23")
    with pytest.raises(PlanError, match="numpy has no bfloat16"):
        merge_tensors("linear", [ones, ones], weight=0.5, dtype="bfloat16")


@pytest.mark.parametrize(
    ("said", "biases", "wrong", "odd"),
    [
        (False, False, "", ""),
        (None, True, "", ""),
        (True, True, "", ""),
        (False, True, "", "although {key} is false"),
        (True, False, "the weights hold no such biases", ""),
    ],
)
@pytest.mark.parametrize(
    ("key", "block"), [("attention_bias", "self_attn.q_proj"), ("mlp_bias", "mlp.up_proj")]
)
@pytest.mark.parametrize("nested", [False, True])
def test_biases_against_the_switches_of_the_config(
    said: bool | None, biases: bool, wrong: str, odd: str, key: str, block: str, nested: bool
) -> None:
    shapes: dict[str, tuple[int, ...]] = {f"model.layers.{n}.{block}.weight": (2, 2) for n in range(2)}
    shapes |= {f"model.layers.{n}.input_layernorm.bias": (2,) for n in range(2)}
    if biases:
        shapes |= {f"model.layers.{n}.{block}.bias": (2,) for n in range(2)}
    tensors = {name: TensorMeta(name, "F32", shape, Path("x"), 0) for name, shape in shapes.items()}
    switches = {} if said is None else {key: said}
    config = {"num_hidden_layers": 2, **({"text_config": switches} if nested else switches)}
    errors, warnings = check_agreement(tensors, config)
    assert [wrong in str(problem) for problem in errors] == ([True] if wrong else [])
    assert [odd.format(key=key) in str(problem) for problem in warnings] == ([True] if odd else [])


def test_the_record_still_reproduces_a_merge_of_the_base_alone(
    models: dict[str, tiny.Model], tmp_path: Path
) -> None:
    from smelt.engine.merge import rerun

    recipe = {"merge_method": "ties", "base_model": str(models["base"]), "models": [entry(models["base"])]}
    make(recipe, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "smelt.json").read_text())["recipe"]["merge_method"] == "ties"
    assert rerun(tmp_path / "out").ok
