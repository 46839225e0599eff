"""How two outputs are judged: values, structure, random masks, bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bench.exactness_cases import all_cases as exact_cases
from bench.parity_cases import Case, all_cases

from bench import agree, bf16, exactness, parity, parity_random, stfile

VALUES = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "v": np.ones(4, np.float32)}


def _model(folder: Path, tensors: dict[str, np.ndarray], **config: object) -> Path:
    folder.mkdir()
    stfile.save(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({"vocab_size": 3, "dtype": "float32", **config}))
    return folder


def _judge(case: Case, left: Path, right: Path) -> parity.Outcome:
    return parity.judge(case, left, right, ("", ""))


def test_cases_are_many_named_once_and_explained() -> None:
    cases = all_cases()
    assert len({case.name for case in cases}) == len(cases) >= 80
    assert all(case.why for case in cases if case.kind == "defect")
    methods = {case.recipe["merge_method"] for case in cases}
    assert methods >= {
        "linear", "slerp", "nuslerp", "multislerp", "karcher", "model_stock", "passthrough",
        "task_arithmetic", "ties", "dare_linear", "dare_ties",
    }  # fmt: skip


def test_equal_models_agree_and_a_difference_is_relative_to_the_largest_value(tmp_path: Path) -> None:
    case = Case("c", {})
    left = _model(tmp_path / "a", VALUES)
    near = _model(tmp_path / "b", {**VALUES, "w": VALUES["w"] + np.float32(1.1e-5)})
    far = _model(tmp_path / "c", {**VALUES, "w": VALUES["w"] + np.float32(1.1e-3)})
    assert _judge(case, left, near).agrees
    outcome = _judge(case, left, far)
    assert not outcome.agrees and outcome.found == "1.0e-04 (w)"


def test_other_names_shapes_dtypes_and_configs_are_differences(tmp_path: Path) -> None:
    case = Case("c", {})
    left = _model(tmp_path / "a", VALUES)
    less = _model(tmp_path / "b", {"w": VALUES["w"]})
    flat = _model(tmp_path / "c", {**VALUES, "w": VALUES["w"].reshape(4, 3)})
    half = _model(tmp_path / "d", {name: value.astype(np.float16) for name, value in VALUES.items()})
    other = _model(tmp_path / "e", VALUES, vocab_size=4)
    said = [_judge(case, left, right).found for right in (less, flat, half, other)]
    assert (
        said[0] == "v only in one"
        and "(4, 3)" in said[1]
        and "F16" in said[2]
        and "vocab_size: 3 and 4" in said[3]
    )


def test_refusals_count_only_when_smelt_refuses_on_purpose(tmp_path: Path) -> None:
    case = Case("c", {}, kind="refuse")
    assert parity.judge(case, tmp_path, tmp_path, ("refused: no", "ValueError")).agrees
    assert not parity.judge(case, tmp_path, tmp_path, ("KeyError('x')", "ValueError")).agrees
    assert not parity.judge(case, tmp_path, tmp_path, ("", "ValueError")).agrees


def _thinned(density: float, seed: int, factor: float = 1.0) -> tuple[dict, dict, dict]:
    rng = np.random.default_rng(seed)
    base = {name: rng.standard_normal((100, 100)) for name in ("p", "q")}
    model = {name: values + rng.standard_normal(values.shape) for name, values in base.items()}
    out = {}
    for name, values in base.items():
        delta = np.where(rng.random(values.shape) < density, model[name] - values, 0)
        delta *= factor * np.abs(model[name] - values).sum() / np.abs(delta).sum()
        out[name] = values + delta
    return out, base, model


def test_a_right_random_mask_passes_and_wrong_ones_are_named() -> None:
    out, base, model = _thinned(0.3, seed=1)
    assert parity_random.one_model(out, base, model, 0.3, rescale=True) == []
    assert "sigma from 0.5" in parity_random.one_model(out, base, model, 0.5, rescale=True)[0]
    assert any(
        "L1 norm" in text for text in parity_random.one_model(*_thinned(0.3, 1, 1.1), 0.3, rescale=True)
    )
    turned = {**out, "p": 2 * base["p"] - out["p"]}
    assert any("signs" in text for text in parity_random.one_model(turned, base, model, 0.3, rescale=True))
    same = {**out, "q": np.where(out["p"] != base["p"], model["q"], base["q"])}
    said = parity_random.one_model(same, base, model, 0.3, rescale=False)
    assert any("not independent" in text for text in said)


@pytest.mark.parametrize("case", exact_cases(identity=True), ids=lambda case: case.name)
def test_references_return_a_model_merged_with_itself(case) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    patterns = bf16.from_float32(rng.standard_normal((8, 16), dtype=np.float32))
    model = bf16.to_float32(patterns).astype(np.float64)
    found = bf16.from_float64(case.reference(model, [model] * len(case.models)))
    assert exactness.values_equal(found, patterns) == patterns.size


def test_the_digest_sees_tensors_not_shards(tmp_path: Path) -> None:
    parts = {name: value.view(np.uint16) for name, value in VALUES.items()}
    whole, split = tmp_path / "whole", tmp_path / "split"
    whole.mkdir()
    split.mkdir()
    stfile.save(whole / "model.safetensors", parts, "BF16")
    for number, name in enumerate(parts, 1):
        stfile.save(split / f"model-{number:05}-of-00002.safetensors", {name: parts[name]}, "BF16")
    assert exactness.digest(whole) == exactness.digest(split)
    stfile.save(split / "model-00001-of-00002.safetensors", {"w": parts["w"] + 1}, "BF16")
    assert exactness.digest(whole) != exactness.digest(split)


def test_agreement_counts_equal_and_neighbouring_values(tmp_path: Path) -> None:
    left, right = tmp_path / "l", tmp_path / "r"
    values = np.array([0x3F80, 0x3F80, 0xBF80, 0x0000, 0x0001], np.uint16)
    others = np.array([0x3F80, 0x3F81, 0xBF7F, 0x8000, 0x8001], np.uint16)
    for folder, array in ((left, values), (right, others)):
        folder.mkdir()
        stfile.save(folder / "model.safetensors", {"x": array}, "BF16")
    found = agree.compare(left, right)
    assert (found.elements, found.equal, found.one_step) == (5, 2, 4)
