"""Layers: slices, gradients, filters and levels, held against values worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_tools import entry, linear, make, planned, source

import tiny
from smelt.core.errors import PlanError, SmeltError

LAYER = "model.layers.{}.mlp.up_proj.weight"
Q = "model.layers.{}.self_attn.q_proj.weight"
HEAD, NORM, EMBED = "lm_head.weight", "model.norm.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tiny.Model]:
    """A base and two fine-tunes of five layers, in float32 so that expectations are exact."""
    return tiny.family(tmp_path_factory.mktemp("models"), "a", "b", layers=5, dtype="F32")


def same(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Equal as float32."""
    return bool((found == np.float32(wanted)).all())


def test_a_gradient_runs_over_the_layers_and_starts_outside_them(
    models: dict[str, tiny.Model], tmp_path: Path
) -> None:
    a, b = models["a"], models["b"]
    recipe = {"merge_method": "linear", "models": [entry(a, weight=[0, 1]), entry(b, weight=[1, 0])]}
    _, out = make(recipe, tmp_path / "out")
    for layer in range(5):
        name, t = LAYER.format(layer), layer / 4
        assert same(out.values[name], t * a.values[name] + (1 - t) * b.values[name]), layer
    for name in (EMBED, NORM, HEAD):
        assert same(out.values[name], b.values[name]), (
            "outside the layers the first entry holds, after them too"
        )


def test_a_gradient_of_three_anchors(models: dict[str, tiny.Model]) -> None:
    recipe = {
        "merge_method": "slerp", "base_model": str(models["a"]), "models": [entry(models["a"]), entry(models["b"])],
        "parameters": {"t": [0, 1, 0.5]},
    }  # fmt: skip
    plan = planned(recipe)
    assert [plan.job(LAYER.format(layer)).params["t"] for layer in range(5)] == [0, 0.5, 1, 0.75, 0.5]


def test_filters_are_tried_in_order_and_fall_through_to_the_next_level(models: dict[str, tiny.Model]) -> None:
    recipe = {
        "merge_method": "slerp", "base_model": str(models["a"]),
        "slices": [{"sources": [source(models["a"], 0, 5), source(models["b"], 0, 5)],
                    "parameters": {"t": [{"filter": "self_attn", "value": [0, 1]}, {"filter": "mlp", "value": 0.25}]}}],
        "parameters": {"t": 0.75},
    }  # fmt: skip
    plan = planned(recipe)
    assert [plan.job(Q.format(layer)).params["t"] for layer in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert plan.job(LAYER.format(3)).params["t"] == 0.25
    assert plan.job("model.layers.2.input_layernorm.weight").params["t"] == 0.75
    assert plan.job(HEAD).params["t"] == 0.75
    levels = {plan.job(name).levels["t"] for name in (Q.format(0), HEAD)}
    assert levels == {"slice", "recipe"}


def test_every_slice_starts_its_gradient_again(models: dict[str, tiny.Model]) -> None:
    pair = (models["a"], models["b"])
    recipe = {
        "merge_method": "slerp", "base_model": str(models["a"]), "parameters": {"t": [0, 1]},
        "slices": [
            {"sources": [source(m, 0, 3) for m in pair]}, {"sources": [source(m, 3, 4) for m in pair]},
            {"sources": [source(m, 3, 5) for m in pair]},
        ],
    }  # fmt: skip
    plan = planned(recipe)
    found = [plan.job(LAYER.format(layer)).params["t"] for layer in range(6)]
    assert found == [0, 0.5, 1, 1, 0, 1], "a slice of one layer stands at its end"
    assert plan.config["num_hidden_layers"] == 6


def test_stacked_slices_take_their_layers_byte_for_byte(
    models: dict[str, tiny.Model], tmp_path: Path
) -> None:
    a, b = models["a"], models["b"]
    recipe = {
        "merge_method": "passthrough",
        "slices": [
            {"sources": [source(a, 0, 3)]},
            {"sources": [source(b, 1, 3)]},
            {"sources": [source(b, 1, 2)]},
        ],
    }
    report, out = make(recipe, tmp_path / "out")
    wanted = [(a, 0), (a, 1), (a, 2), (b, 1), (b, 2), (b, 1)]
    raws = {model.path.name: tiny.tensor_bytes(model.path) for model in (a, b)}
    made = tiny.tensor_bytes(out.path)
    for layer, (model, inner) in enumerate(wanted):
        for name in [name for name in made if f".layers.{layer}." in name]:
            assert made[name] == raws[model.path.name][name.replace(f".{layer}.", f".{inner}.")], name
    assert made[EMBED] == raws["a"][EMBED], "before the layers: the first slice"
    assert made[HEAD] == raws["b"][HEAD] and made[NORM] == raws["b"][NORM], "after them: the last"
    assert out.config["num_hidden_layers"] == 6
    dropped = [note for note in report.notes if "dropped" in note]
    assert any(str(a) in note for note in dropped) and any(str(b) in note for note in dropped)


def test_layer_types_and_other_per_layer_lists_are_sliced(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention", "chunked_attention"]
    one = tiny.write(tmp_path / "one", layers=4, config={"layer_types": kinds})
    recipe = {
        "merge_method": "passthrough",
        "slices": [{"sources": [source(one, 0, 2)]}, {"sources": [source(one, 1, 4)]}],
    }
    _, out = make(recipe, tmp_path / "out")
    assert out.config["layer_types"] == [kinds[i] for i in (0, 1, 1, 2, 3)]


def test_different_layers_meet_in_one_slice(models: dict[str, tiny.Model], tmp_path: Path) -> None:
    """Per-model filters see the name in that model, global ones the name in the output."""
    a, b = models["a"], models["b"]
    weights = [{"filter": "layers.3.", "value": 3.0}, {"value": 1.0}]
    recipe = {
        "merge_method": "linear",
        "slices": [{"sources": [source(a, 0, 2, weight=1.0), source(b, 3, 5, weight=weights)]}],
        "parameters": {"normalize": [{"filter": "layers.1.", "value": False}, {"value": True}]},
    }
    _, out = make(recipe, tmp_path / "out")
    first, second = LAYER.format(0), LAYER.format(1)
    assert same(out.values[first], (a.values[first] + 3 * b.values[LAYER.format(3)]) / 4)
    assert same(out.values[second], a.values[second] + b.values[LAYER.format(4)])


def test_the_nearest_level_wins(models: dict[str, tiny.Model]) -> None:
    a, b = models["a"], models["b"]
    recipe = {
        "merge_method": "linear", "parameters": {"weight": 1.0},
        "slices": [
            {"sources": [source(a, 0, 2, weight=4.0), source(b, 0, 2)], "parameters": {"weight": 2.0}},
            {"sources": [source(a, 2, 5), source(b, 2, 5)]},
        ],
    }  # fmt: skip
    plan = planned(recipe)
    assert plan.job(LAYER.format(0)).params["weight"] == [4.0, 2.0]
    assert plan.job(LAYER.format(0)).levels["weight"] == ["model", "slice"]
    assert plan.job(LAYER.format(2)).params["weight"] == [1.0, 1.0]
    assert plan.job(EMBED).params["weight"] == [4.0, 2.0], "before the layers: the first slice's settings"
    assert plan.job(HEAD).params["weight"] == [1.0, 1.0], "after them: the last slice's"
    assert (
        plan.job(LAYER.format(0)).params["normalize"] is True
        and plan.job(EMBED).levels["normalize"] == "default"
    )


def test_the_base_joins_slices_that_do_not_list_it(models: dict[str, tiny.Model], tmp_path: Path) -> None:
    a, base = models["a"], models["base"]
    recipe = {
        "merge_method": "task_arithmetic", "base_model": str(base), "parameters": {"weight": 0.5},
        "slices": [{"sources": [source(a, 1, 4)]}],
    }  # fmt: skip
    _, out = make(recipe, tmp_path / "out")
    name, inner = LAYER.format(0), LAYER.format(1)
    assert same(out.values[name], base.values[inner] + 0.5 * (a.values[inner] - base.values[inner]))


def test_the_same_model_twice_in_a_slice_is_two_models(models: dict[str, tiny.Model], tmp_path: Path) -> None:
    a = models["a"]
    recipe = {
        "merge_method": "linear",
        "slices": [{"sources": [source(a, 0, 2, weight=1.0), source(a, 2, 4, weight=3.0)]}],
    }
    _, out = make(recipe, tmp_path / "out")
    for layer in range(2):
        low, high = a.values[LAYER.format(layer)], a.values[LAYER.format(layer + 2)]
        assert same(out.values[LAYER.format(layer)], (low + 3 * high) / 4)


def test_the_base_against_other_layers_of_itself_is_refused(models: dict[str, tiny.Model]) -> None:
    """It would not be clear which of the two is the base."""
    a = models["a"]
    recipe = {
        "merge_method": "slerp", "base_model": str(a), "parameters": {"t": 1.0},
        "slices": [{"sources": [source(a, 0, 2), source(a, 2, 4)]}],
    }  # fmt: skip
    with pytest.raises(
        SmeltError, match=r"slices\[0\].sources\[1\]: the base model .* stands here and at \[0\]"
    ):
        planned(recipe)


def test_a_layer_range_past_the_end_is_refused(models: dict[str, tiny.Model]) -> None:
    recipe = {"merge_method": "passthrough", "slices": [{"sources": [source(models["a"], 3, 9)]}]}
    with pytest.raises(
        PlanError, match=r"slices\[0\].sources\[0\].layer_range: .*\[3, 9\].*past the end.*at most 5"
    ):
        planned(recipe)


def test_models_of_different_depth_need_slices(models: dict[str, tiny.Model], tmp_path: Path) -> None:
    short = tiny.write(tmp_path / "short", layers=3, dtype="F32")
    with pytest.raises(PlanError) as found:
        planned(linear((models["a"], 1), (short, 1)))
    text = str(found.value)
    assert (
        "different depth" in text
        and f"{short} has 3" in text
        and f"{models['a']} has 5" in text
        and "layer_range" in text
    )


def test_a_required_parameter_that_no_filter_sets_is_named_once_per_kind(
    models: dict[str, tiny.Model],
) -> None:
    recipe = linear((models["a"], 1), (models["b"], 1))
    recipe["models"][1]["parameters"]["weight"] = [{"filter": "self_attn", "value": 0.5}]
    with pytest.raises(PlanError) as found:
        planned(recipe)
    text = str(found.value)
    assert f"parameter 'weight' is not set for {models['b']}" in text
    assert "more tensors without weight" in text and len(text.splitlines()) < 12


@pytest.mark.parametrize("weights", [(1.0, -1.0), (0.0, 0.0)])
def test_weights_that_sum_to_zero_are_refused_before_any_work(
    models: dict[str, tiny.Model], weights: Any, tmp_path: Path
) -> None:
    for method in ("linear", "karcher"):
        recipe = {
            "merge_method": method,
            "models": [entry(models[m], weight=w) for m, w in zip("ab", weights, strict=True)],
        }
        with pytest.raises(SmeltError, match=r"sum to zero|at least 0"):
            make(recipe, tmp_path / "out")
    assert not list(tmp_path.iterdir())
