"""The model maker: right shapes, the same bytes on every machine and thread count, made once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from bench.shapes import SIZES, size_named

from bench import bf16, make_models, stfile


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SMELT_BENCH_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("name", "billions"), [("0.33b", 0.330), ("1.24b", 1.236), ("3.2b", 3.213)])
def test_sizes_have_the_parameters_they_are_named_after(name: str, billions: float) -> None:
    assert SIZES[name].parameters / 1e9 == pytest.approx(billions, abs=5e-4)


def test_unknown_size_is_refused_with_the_known_ones() -> None:
    assert size_named("1B") == "1.24b"
    with pytest.raises(SystemExit, match=r"unknown size '7b'; known: .*1\.24b"):
        size_named("7b")


def test_a_model_is_a_checkpoint_safetensors_reads(cache: Path) -> None:
    from safetensors import safe_open

    folders = make_models.ensure("tiny", threads=2)
    assert list(folders) == ["base", "code", "math", "chat"]
    with safe_open(folders["code"] / "model.safetensors", "np") as file:
        assert set(file.keys()) == {name for name, _ in SIZES["tiny"].tensors()}
    config = json.loads((folders["base"] / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and config["vocab_size"] == 384


def test_fine_tunes_leave_many_elements_of_the_base_alone(cache: Path) -> None:
    folders = make_models.ensure("tiny")
    name = "model.layers.1.mlp.up_proj.weight"
    base, *tuned = (_tensor(folder, name) for folder in folders.values())
    same = [float((tensor == base).mean()) for tensor in tuned]
    assert 0.1 < same[0] < same[1] < same[2] < 0.9  # deltas of 1e-2, 3e-3, 1e-3
    assert bf16.to_float32(np.asarray(base)).std() == pytest.approx(0.02, rel=0.02)


def test_threads_and_repetition_change_no_byte(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_models, "BLOCK", 1000)
    first = _hashes(make_models.ensure("tiny", threads=1))
    stamp = next(cache.rglob("complete.json"))
    stamp.unlink()
    assert _hashes(make_models.ensure("tiny", threads=4)) == first
    file = make_models.ensure("tiny")["base"] / "model.safetensors"
    before = file.stat().st_mtime_ns
    make_models.ensure("tiny")
    assert file.stat().st_mtime_ns == before


def _tensor(folder: Path, name: str) -> np.ndarray:
    return next(array for found, _, array in stfile.raw_tensors(folder) if found == name)


def _hashes(folders: dict[str, Path]) -> list[str]:
    return [
        hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() for folder in folders.values()
    ]


def test_fp32_noise_is_finer_than_its_table(cache: Path) -> None:
    fine, coarse = (make_models.noise(1, 2, 3, 200_000, fine=fine) for fine in (True, False))
    assert len(np.unique(coarse)) <= 65536 < len(np.unique(fine))
    for values in (fine, coarse):
        assert abs(values.mean()) < 0.01 and values.std() == pytest.approx(1, abs=0.01)


def test_large_models_are_sharded_like_the_hubs() -> None:
    shards = make_models.shards_of(SIZES["3.2b"], itemsize=2)
    assert len(shards) == 2
    assert sorted([*shards[0], *shards[1]]) == sorted(name for name, _ in SIZES["3.2b"].tensors())


def test_rounding_from_float64_is_not_done_twice() -> None:
    midpoint = 1 + 2.0**-8  # between 0x3f80 and 0x3f81
    values = np.array([midpoint, midpoint + 2.0**-40, midpoint - 2.0**-40, -midpoint - 2.0**-40])
    assert [hex(x) for x in bf16.from_float64(values)] == ["0x3f80", "0x3f81", "0x3f80", "0xbf81"]
    twice = bf16.from_float32(values.astype(np.float32))
    assert hex(twice[1]) == "0x3f80"  # what rounding by way of float32 would give


def test_noise_differs_from_block_to_block_tensor_to_tensor_and_model_to_model() -> None:
    first = make_models.noise(1, 2, 3, 1000, fine=False)
    assert np.array_equal(first, make_models.noise(1, 2, 3, 1000, fine=False))
    for key in ((1, 2, 4), (1, 3, 3), (2, 2, 3)):
        other = make_models.noise(*key, 1000, fine=False)
        assert abs(np.corrcoef(first, other)[0, 1]) < 0.2
