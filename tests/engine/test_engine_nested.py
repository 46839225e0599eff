"""Recipes inside recipes: the bytes of doing it in stages, with nothing written in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_tools import entry, linear, make, planned, source

import tiny
from smelt.core.errors import PlanError, SmeltError
from smelt.engine.merge import merge
from smelt.engine.plan import Settings

UP = "model.layers.1.mlp.up_proj.weight"


def ties(base: Any, *models: Any, **parameters: Any) -> dict[str, Any]:
    return {
        "merge_method": "ties", "base_model": base if isinstance(base, dict) else str(base),
        "models": [entry(model, weight=0.6) for model in models], "parameters": {"density": 0.4, **parameters},
    }  # fmt: skip


def slerp(first: Any, second: Any, t: float = 0.3) -> dict[str, Any]:
    base = first if isinstance(first, dict) else str(first)
    return {
        "merge_method": "slerp",
        "base_model": base,
        "models": [entry(first), entry(second)],
        "parameters": {"t": t},
    }


def in_stages(inner: dict[str, Any], outer: Any, tmp_path: Path) -> dict[str, bytes]:
    """The inner merge saved, the outer one made from the saved model."""
    middle = make(inner, tmp_path / "middle")[1]
    return tiny.tensor_bytes(make(outer(middle), tmp_path / "staged")[1].path)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("inside", ["linear", "slerp", "ties"])
def test_nested_equals_staged(tmp_path: Path, inside: str, dtype: str) -> None:
    """An inner recipe with a dtype is rounded to it, exactly as if it had been saved."""
    models = tiny.family(tmp_path, "a", "b", "c", dtype=dtype)
    a, b, c, base = (models[name] for name in ("a", "b", "c", "base"))
    inner = {"linear": linear((a, 0.3), (b, 0.6)), "slerp": slerp(a, b), "ties": ties(base, a, b)}[inside]
    inner["dtype"] = tiny.DTYPES[dtype]
    for number, outer in enumerate(
        (lambda m: ties(base, m, c), lambda m: slerp(m, c), lambda m: linear((m, 0.7), (c, 0.4)))
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        staged = in_stages(inner, outer, folder)
        _, nested = make(outer(inner), folder / "nested")
        assert tiny.tensor_bytes(nested.path) == staged, number


def test_an_inner_float32_result_keeps_its_digits_between_bf16_models(tmp_path: Path) -> None:
    models = tiny.family(tmp_path, "a", "b", "c")
    inner = linear((models["a"], 0.3), (models["b"], 0.6), dtype="float32")

    def outer(model: Any) -> dict[str, Any]:
        return linear((model, 0.5), (models["c"], 0.5), dtype="bfloat16")

    staged = in_stages(inner, outer, tmp_path)
    _, nested = make(outer(inner), tmp_path / "nested")
    assert tiny.tensor_bytes(nested.path) == staged


def test_without_a_dtype_nothing_is_rounded_in_between(tmp_path: Path) -> None:
    """bf16 models averaged twice equal the float64 average rounded once, everywhere."""
    models = tiny.family(tmp_path, "a", "b", "c", hidden=64, inner=64)
    a, b, c = (models[name] for name in "abc")
    _, out = make(linear((linear((a, 0.3), (b, 0.7)), 0.6), (c, 0.4)), tmp_path / "out")
    for name, raw in tiny.tensor_bytes(out.path).items():
        inner = (0.3 * a.values[name] + 0.7 * b.values[name]) / (0.3 + 0.7)
        exact = (0.6 * inner + 0.4 * c.values[name]) / (0.6 + 0.4)
        with np.errstate(all="ignore"):
            found = np.frombuffer(raw, np.uint16)
        from smelt.numerics.rounding import encode

        assert (found == encode(exact.reshape(-1), "BF16")).all(), name


def test_three_levels_and_a_nested_base(tmp_path: Path) -> None:
    models = tiny.family(tmp_path, "a", "b", "c", dtype="F32")
    a, b, c = (models[name] for name in "abc")
    middle = linear((a, 1), (b, 3))
    recipe = {
        "merge_method": "task_arithmetic", "base_model": middle,
        "models": [entry(linear((middle, 1), (c, 1)), weight=2.0)],
    }  # fmt: skip
    _, out = make(recipe, tmp_path / "out")
    for name, raw in out.values.items():
        base = (a.values[name] + 3 * b.values[name]) / 4
        assert np.allclose(raw, base + 2 * ((base + c.values[name]) / 2 - base), rtol=1e-6, atol=1e-9)


def test_nothing_but_the_output_is_ever_on_disk(tmp_path: Path) -> None:
    models = tiny.family(tmp_path / "models", "a", "b", "c", hidden=64, inner=64)
    recipe = ties(linear((models["a"], 1), (models["b"], 1)), models["c"])
    seen: list[int] = []

    def watch(stage: str, done: int, total: int, tensors: int) -> None:
        files = [path for path in tmp_path.rglob("*") if path.is_file() and "models" not in path.parts]
        seen.append(sum(path.stat().st_size for path in files if path.suffix == ".safetensors"))

    report = merge(recipe, tmp_path / "out", Settings(), progress=watch)
    assert len(seen) > len(models["a"].values) and max(seen) == report.bytes_out


def test_the_donor_is_found_through_the_nested_base(tmp_path: Path) -> None:
    models = tiny.family(tmp_path, "a", "b")
    _, out = make(ties(linear((models["a"], 1), (models["b"], 1)), models["b"]), tmp_path / "out")
    assert (out.path / "tokenizer.json").read_bytes() == (models["a"].path / "tokenizer.json").read_bytes()
    assert out.config["num_hidden_layers"] == 2


def test_a_nested_stack_is_merged_by_its_new_layers(tmp_path: Path) -> None:
    models = tiny.family(tmp_path, "a", "b", layers=3, dtype="F32")
    a, b = models["a"], models["b"]
    stack = {
        "merge_method": "passthrough",
        "slices": [{"sources": [source(a, 0, 2)]}, {"sources": [source(b, 1, 3)]}],
    }
    wide = tiny.write(tmp_path / "wide", layers=4, dtype="F32", seed=5)
    _, out = make(linear((stack, 1), (wide, 1)), tmp_path / "out")
    assert (out.values[UP] == np.float32((a.values[UP] + wide.values[UP]) / 2)).all()
    third = UP.replace("1", "3")
    assert (out.values[third] == np.float32((b.values[UP.replace("1", "2")] + wide.values[third]) / 2)).all()
    assert out.config["num_hidden_layers"] == 4


def test_what_only_a_nested_merge_has_is_taken_merged(tmp_path: Path) -> None:
    extra = "model.layers.1.mlp.extra.weight"
    a, b = (
        tiny.write(tmp_path / n, seed=i, dtype="F32", change={extra: np.full(3, i + 1.0)})
        for i, n in enumerate("ab")
    )
    c = tiny.write(tmp_path / "c", seed=7, dtype="F32")
    _, out = make(linear((linear((a, 1), (b, 1)), 1), (c, 1)), tmp_path / "out", missing="merge")
    assert out.values[extra].tolist() == [1.5, 1.5, 1.5]
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": linear((a, 1), (b, 1)),
        "models": [entry(c, weight=1.0)],
    }
    _, out = make(recipe, tmp_path / "again", missing="merge")
    assert out.values[extra].tolist() == [1.5, 1.5, 1.5]


def test_random_masks_of_nested_and_outer_merges_differ(tmp_path: Path) -> None:
    ones = {UP: np.ones((12, 8))}
    base = tiny.write(tmp_path / "base", dtype="F32", change={UP: np.zeros((12, 8))})
    a = tiny.write(tmp_path / "a", dtype="F32", change=ones)

    def dare(model: Any) -> dict[str, Any]:
        return {
            "merge_method": "dare_linear", "base_model": str(base), "models": [entry(model, weight=1.0)],
            "parameters": {"density": 0.5, "rescale": False},
        }  # fmt: skip

    _, once = make(dare(a), tmp_path / "once")
    _, twice = make(dare(dare(a)), tmp_path / "twice")
    assert 30 < once.values[UP].sum() < 66
    assert twice.values[UP].sum() < 0.8 * once.values[UP].sum(), "the same mask twice would change nothing"


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_order_statistics_over_the_model_inside_and_outside(tmp_path: Path, scope: str) -> None:
    models = tiny.family(tmp_path, "a", "b", "c", dtype="F32")
    inner = ties(models["base"], models["a"], models["b"], scope=scope) | {"dtype": "float32"}

    def outer(model: Any) -> dict[str, Any]:
        return ties(models["base"], model, models["c"], scope=scope)

    staged = in_stages(inner, outer, tmp_path)
    _, nested = make(outer(inner), tmp_path / "nested")
    assert tiny.tensor_bytes(nested.path) == staged


def test_one_threshold_over_tensors_of_different_dtypes(tmp_path: Path) -> None:
    """Half of the model is bf16, half float32; order statistics over both compare numbers, not bit patterns."""
    kinds = {name: "BF16" for i, name in enumerate(tiny.shapes()) if i % 2}
    models = tiny.family(tmp_path, "a", "b", dtype="F32", dtypes=kinds)
    recipe = ties(models["base"], models["a"], scope="model")
    _, out = make(recipe, tmp_path / "out")
    deltas = {name: models["a"].values[name] - base for name, base in models["base"].values.items()}
    flat = np.sort(np.abs(np.concatenate([delta.reshape(-1) for delta in deltas.values()])))
    cut = flat[-int(0.4 * flat.size)]
    for name, delta in deltas.items():
        moved = out.values[name] != models["base"].values[name]
        assert not moved[np.abs(delta) < cut].any(), name
    _, nested = make(linear((recipe, 1), (models["b"], 1)), tmp_path / "nested")
    assert len(nested.values) == len(out.values)


def test_problems_of_inner_recipes_are_told(tmp_path: Path) -> None:
    a, b = tiny.write(tmp_path / "a"), tiny.write(tmp_path / "b", drop=(UP,))
    with pytest.raises(PlanError, match=f"{UP}.*is in {a} but not in {b}"):
        planned(linear((linear((a, 1), (b, 1)), 1), (a, 1)))
    with pytest.raises(SmeltError, match="nowhere"):
        planned(linear((linear((tmp_path / "nowhere", 1)), 1), (a, 1)))
