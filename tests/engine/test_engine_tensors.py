"""Tensors: missing, misshapen, mixed, broken, tied, whole numbers; each merged, copied or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_tools import entry, left_behind, linear, make, planned

import tiny
from smelt.core.errors import NonFiniteError, PlanError, SmeltError
from smelt.engine import execute
from smelt.numerics.blocks import GRAIN

UP, NORM, HEAD, EMBED = (
    "model.layers.1.mlp.up_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
    "model.embed_tokens.weight",
)


def arithmetic(base: Any, *models: Any, **more: Any) -> dict[str, Any]:
    return {
        "merge_method": "task_arithmetic", "base_model": str(base), "models": [entry(m, weight=0.5) for m in models], **more
    }  # fmt: skip


def test_a_tensor_that_one_model_lacks_is_named_with_both_sides(tmp_path: Path) -> None:
    a, b = tiny.write(tmp_path / "a"), tiny.write(tmp_path / "b", drop=(UP,))
    with pytest.raises(PlanError, match=rf"tensor '{UP}': is in {a} but not in {b}; .*--missing merge"):
        planned(linear((a, 1), (b, 1)))


def test_missing_tensors_are_merged_over_those_that_have_them_when_asked(tmp_path: Path) -> None:
    a, b, c = (
        tiny.write(tmp_path / name, seed=i, dtype="F32", drop=(UP,) if name == "b" else ())
        for i, name in enumerate("abc")
    )
    report, out = make(linear((a, 1), (b, 5), (c, 3)), tmp_path / "out", missing="merge")
    assert (out.values[UP] == np.float32((a.values[UP] + 3 * c.values[UP]) / 4)).all()
    assert any(UP in note for note in report.notes)


@pytest.mark.parametrize("dtype", [None, "float32", "float16"])
def test_what_only_one_model_has_is_copied_in_the_dtype_that_was_asked(
    tmp_path: Path, dtype: str | None
) -> None:
    extra = "model.layers.1.mlp.extra.weight"
    a = tiny.write(tmp_path / "a", seed=1, change={extra: np.linspace(-1, 1, 7)})
    b = tiny.write(tmp_path / "b", seed=2)
    _, out = make(
        linear((a, 1), (b, 1), **({"dtype": dtype} if dtype else {})), tmp_path / "out", missing="merge"
    )
    assert out.dtypes[extra] == {None: "BF16", "float32": "F32", "float16": "F16"}[dtype]
    wanted = np.float16(a.values[extra]) if dtype == "float16" else a.values[extra]
    assert (out.values[extra] == wanted).all()


def test_a_tensor_the_base_lacks_cannot_be_a_task_vector(tmp_path: Path) -> None:
    base = tiny.write(tmp_path / "base", drop=(UP,))
    a, b = tiny.write(tmp_path / "a", seed=1), tiny.write(tmp_path / "b", seed=2)
    with pytest.raises(PlanError, match=rf"tensor '{UP}': is not in the base, but in {a}, {b}"):
        planned(arithmetic(base, a, b), missing="merge")


def test_shapes_that_differ_name_both_shapes_and_both_files(tmp_path: Path) -> None:
    a, b = tiny.write(tmp_path / "a"), tiny.write(tmp_path / "b", change={UP: np.zeros((12, 9))})
    with pytest.raises(PlanError) as found:
        planned(linear((a, 1), (b, 1)))
    text = str(found.value)
    assert "[12, 8]" in text and "[12, 9]" in text
    assert (
        str(a.path / "model.safetensors") in text and str(b.path / "model.safetensors") in text and UP in text
    )


def test_models_of_another_size_give_a_short_report(tmp_path: Path) -> None:
    a, b = tiny.write(tmp_path / "a", hidden=8, layers=6), tiny.write(tmp_path / "b", hidden=16, layers=6)
    with pytest.raises(PlanError) as found:
        planned(linear((a, 1), (b, 1)))
    assert len(found.value.problems) < 12 and "more tensors with different shapes" in str(found.value)


def test_a_larger_vocabulary_is_said_to_be_one(tmp_path: Path) -> None:
    a, b = tiny.write(tmp_path / "a", tokenizer=False), tiny.write(tmp_path / "b", vocab=40, tokenizer=False)
    with pytest.raises(PlanError, match="vocabularies may differ; nothing is cut silently"):
        planned(linear((a, 1), (b, 1)))


@pytest.mark.parametrize("order", [("BF16", "F16", "F32"), ("F16", "F32", "BF16"), ("F32", "BF16", "F16")])
def test_dtypes_mix_and_the_result_has_the_bases(tmp_path: Path, order: tuple[str, str, str]) -> None:
    base, a, b = (tiny.write(tmp_path / str(i), seed=i, dtype=dtype) for i, dtype in enumerate(order))
    _, out = make(arithmetic(base, a, b), tmp_path / "out")
    assert set(out.dtypes.values()) == {order[0]}
    exact = base.values[UP] + (
        0.5 * (a.values[UP] - base.values[UP]) + 0.5 * (b.values[UP] - base.values[UP])
    )
    assert (
        tiny.pack(exact if order[0] != "BF16" else np.float32(exact), order[0])
        == tiny.tensor_bytes(out.path)[UP]
    )
    assert out.config["dtype"] == tiny.DTYPES[order[0]]


@pytest.mark.parametrize(
    ("fields", "dtype"),
    [
        ({"dtype": "float16"}, "F16"),
        ({"out_dtype": "float32"}, "F32"),
        ({"dtype": "float16", "out_dtype": "bfloat16"}, "BF16"),
    ],
)
def test_the_recipe_may_choose_the_dtype(tmp_path: Path, fields: dict[str, str], dtype: str) -> None:
    a, b = (
        tiny.write(tmp_path / "a", seed=1),
        tiny.write(tmp_path / "b", seed=2, config={"torch_dtype": "bfloat16"}),
    )
    _, out = make(linear((a, 1), (b, 1), **fields), tmp_path / "out")
    assert set(out.dtypes.values()) == {dtype} and out.config["dtype"] == tiny.DTYPES[dtype]


def test_nested_and_old_dtype_keys_follow(tmp_path: Path) -> None:
    config = {"torch_dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}, "dtype": None}
    a = tiny.write(tmp_path / "a", config=config)
    _, out = make(linear((a, 1), dtype="float32"), tmp_path / "out")
    assert out.config["torch_dtype"] == "float32" and out.config["text_config"]["dtype"] == "float32"


def test_whole_numbers_are_copied_and_noted(tmp_path: Path) -> None:
    buffer = "model.layers.0.self_attn.position_ids"
    models = [
        tiny.write(tmp_path / name, seed=i, change={buffer: np.arange(i, i + 5)}, dtypes={buffer: "I64"})
        for i, name in enumerate("ab")
    ]
    plan = planned(linear((models[0], 1), (models[1], 1)))
    assert plan.job(buffer).kind == "copy" and str(models[0]) in plan.job(buffer).note
    _, out = make(linear((models[0], 1), (models[1], 1), dtype="float32"), tmp_path / "out")
    assert out.dtypes[buffer] == "I64" and out.values[buffer].tolist() == [0, 1, 2, 3, 4]


def test_whole_numbers_against_floats_are_refused(tmp_path: Path) -> None:
    a = tiny.write(tmp_path / "a", change={UP: np.zeros((12, 8))}, dtypes={UP: "I32"})
    with pytest.raises(
        PlanError, match=r"holds I32 in .* but BF16 in .*floating point numbers everywhere, or nowhere"
    ):
        planned(linear((a, 1), (tiny.write(tmp_path / "b"), 1)))


METHODS: dict[str, dict[str, Any]] = {
    "linear": {}, "slerp": {"t": 0.5}, "nuslerp": {}, "multislerp": {}, "karcher": {}, "model_stock": {}, "passthrough": {},
    "task_arithmetic": {}, "ties": {"density": 0.5}, "dare_linear": {"density": 0.5}, "dare_ties": {"density": 0.5},
}  # fmt: skip


def any_method(method: str, base: Any, a: Any, b: Any) -> dict[str, Any]:
    """A recipe of the method over a (which is broken in some tests) and, where it fits, b."""
    from smelt.methods import REGISTRY

    spec = REGISTRY[method]
    weight = {"weight": 0.5} if spec.param("weight") else {}
    many = spec.max_models is None or spec.max_models > 1
    chosen = [entry(a, **weight), *([entry(b, **weight)] if many and spec.base != "member" else [])]
    recipe: dict[str, Any] = {"merge_method": method, "models": chosen, "parameters": METHODS[method]}
    return recipe | ({"base_model": str(base)} if spec.base in ("required", "member") else {})


def test_every_method_is_in_the_list_above() -> None:
    from smelt.methods import REGISTRY

    assert set(METHODS) == set(REGISTRY)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("method", METHODS)
def test_a_broken_number_is_named_and_nothing_is_left(tmp_path: Path, method: str, bad: float) -> None:
    broken = np.full((12, 8), 0.01)
    broken[3, 5] = bad
    base, b = tiny.write(tmp_path / "base"), tiny.write(tmp_path / "b", seed=2)
    a = tiny.write(tmp_path / "a", seed=1, change={UP: broken})
    recipe = any_method(method, base, a, b)
    with pytest.raises(NonFiniteError) as found:
        make(recipe, tmp_path / "out")
    text = str(found.value)
    assert f"tensor '{UP}' holds {bad} at element 29" in text
    assert str(a.path / "model.safetensors") in text and "--allow-nonfinite" in text
    assert left_behind(tmp_path) == ["a", "b", "base"]
    report, out = make(recipe, tmp_path / "out", allow_nonfinite=True)
    assert report.tensors == len(out.values)


@pytest.mark.parametrize("copied", [False, True])
def test_the_place_of_a_broken_number_is_counted_from_the_tensors_start(tmp_path: Path, copied: bool) -> None:
    name, place = "model.layers.1.mlp.long.weight", 3 * GRAIN + 77
    values = np.full(4 * GRAIN, 0.5)
    values[place] = np.inf
    a = tiny.write(tmp_path / "a", change={name: values})
    b = tiny.write(tmp_path / "b", seed=1, change={} if copied else {name: np.zeros(4 * GRAIN)})
    with pytest.raises(NonFiniteError, match=f"tensor '{name}' holds inf at element {place}"):
        make(linear((a, 1), (b, 1)), tmp_path / "out", missing="merge", block=GRAIN)


def test_a_broken_number_in_a_copied_tensor_is_named(tmp_path: Path) -> None:
    extra = "model.layers.1.mlp.extra.weight"
    a = tiny.write(tmp_path / "a", change={extra: np.array([1.0, np.nan])})
    with pytest.raises(NonFiniteError, match=f"tensor '{extra}' holds nan at element 1"):
        make(linear((a, 1), (tiny.write(tmp_path / "b"), 1)), tmp_path / "out", missing="merge")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"config": {"quantization_config": {"quant_method": "gptq", "bits": 4}}}, "quantised \\(gptq\\)"),
        ({"config": {"quantization_config": {"bits": 8}}}, "quantised"),
    ],
)
def test_quantised_models_are_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    a, b = tiny.write(tmp_path / "a", **options), tiny.write(tmp_path / "b")
    with pytest.raises(PlanError, match=said + ".*expected bf16.*dequantise"):
        planned(linear((a, 1), (b, 1)))


def test_packed_dtypes_are_refused(tmp_path: Path) -> None:
    a = tiny.write(tmp_path / "a")
    tensors = {name: ("F8_E4M3", shape, raw[::2]) for name, _, shape, raw in tiny.stored(a.path)}
    tiny.write_safetensors(a.path / "model.safetensors", tensors)
    with pytest.raises(PlanError, match=r"quantised .F8_E4M3."):
        planned(linear((a, 1), (tiny.write(tmp_path / "b"), 1)))


def test_every_problem_of_every_model_is_told_at_once(tmp_path: Path) -> None:
    a = tiny.write(tmp_path / "a", config={"quantization_config": {"quant_method": "awq"}})
    with pytest.raises(PlanError) as found:
        planned(linear((a, 1), (tmp_path / "nowhere", 1), (tmp_path / "elsewhere", 1)))
    text = str(found.value)
    assert "awq" in text and "nowhere" in text and "elsewhere" in text


@pytest.mark.parametrize("tied", [True, False])
def test_heads_stay_as_they_are_when_all_agree(tmp_path: Path, tied: bool) -> None:
    models = tiny.family(tmp_path, "a", tied=tied)
    _, out = make(arithmetic(models["base"], models["a"]), tmp_path / "out")
    assert (HEAD in out.values) is not tied and out.config["tie_word_embeddings"] is tied


def test_a_tied_base_meets_an_untied_model(tmp_path: Path) -> None:
    """The embedding stands in for the head that is not stored, and the output has a head of its own."""
    base = tiny.write(tmp_path / "base", tied=True, dtype="F32")
    a = tiny.write(tmp_path / "a", seed=1, dtype="F32")
    report, out = make(arithmetic(base, a), tmp_path / "out")
    assert (
        out.values[HEAD] == np.float32(base.values[EMBED] + 0.5 * (a.values[HEAD] - base.values[EMBED]))
    ).all()
    assert out.config["tie_word_embeddings"] is False
    assert any("head of its own" in note for note in report.notes)


def test_scalars_and_empty_tensors_go_through_a_whole_merge(tmp_path: Path) -> None:
    extra = {
        "model.scale": np.float64(2.0),
        "model.empty": np.zeros((0, 3)),
        "model.hollow": np.zeros((4, 0)),
    }
    models = [
        tiny.write(tmp_path / name, seed=i, dtype="F32", change=extra)
        for i, name in enumerate(("base", "a", "b"))
    ]
    for number, method in enumerate(METHODS):
        _, out = make(any_method(method, *models), tmp_path / f"out{number}")
        assert {name: out.values[name].shape for name in extra} == {
            name: value.shape for name, value in extra.items()
        }
        assert out.values["model.scale"] == pytest.approx(2.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_merged_with_itself_returns_its_bytes(tmp_path: Path, method: str) -> None:
    change = {UP: np.array([0.0, -0.0, 1e-40, -3e38, 0.1, 7.0, -1e-9, 2.0**-133] * 12).reshape(12, 8)}
    one = tiny.write(tmp_path / "one", change=change)
    copies = [tiny.Model(tmp_path / name, one.values, one.dtypes) for name in ("base", "a", "b")]
    for copy in copies:
        copy.path.symlink_to(one.path)
    _, out = make(any_method(method, *copies), tmp_path / "out")
    assert tiny.tensor_bytes(out.path) == tiny.tensor_bytes(one.path)


def test_unknown_model_and_method_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SmeltError, match="nowhere"):
        planned(linear((tmp_path / "nowhere", 1)))
    with pytest.raises(SmeltError, match="did you mean 'linear'"):
        planned({"merge_method": "lineer", "models": [entry(tiny.write(tmp_path / "a"))]})


def test_compiled_loops_make_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tiny.family(tmp_path, "a", "b")
    recipe = any_method("ties", models["base"], models["a"], models["b"])
    make(recipe, tmp_path / "plain")
    monkeypatch.setattr(execute, "SMALL_MERGE", 0)
    make(recipe, tmp_path / "compiled")
    assert tiny.tensor_bytes(tmp_path / "plain") == tiny.tensor_bytes(tmp_path / "compiled")
