"""Many blocks in one compiled call: the same bytes and the same errors as block by block."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_tools import entry, left_behind, make

import tiny
from smelt.checkpoint import window
from smelt.core.errors import SmeltError
from smelt.engine import execute
from smelt.engine import run as running
from smelt.engine.express import WRITTEN, Express
from smelt.numerics.blocks import GRAIN

RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"merge_method": "linear", "parameters": {"weight": 0.3}},
    "slerp": {"merge_method": "slerp", "parameters": {"t": 0.4}},
    "karcher": {"merge_method": "karcher"},
    "model_stock": {"merge_method": "model_stock"},
    "ties": {"merge_method": "ties", "parameters": {"density": 0.3, "weight": 1.0}},
    "dare_ties": {"merge_method": "dare_ties", "parameters": {"density": 0.3, "weight": 1.0}},
    "passthrough": {"merge_method": "passthrough"},
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tiny.Model]:
    """Tensors of several blocks that never end with one, and some of few bytes."""
    return tiny.family(tmp_path_factory.mktemp("wide"), "a", "b", hidden=96, inner=1400, vocab=1500, layers=1)


@pytest.fixture(autouse=True, params=[0, 1 << 40], ids=["in place", "copied"])
def always_compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "SMALL_MERGE", 0)
    monkeypatch.setattr(window, "LEAST", request.param)
    for module in (execute, running):
        monkeypatch.setattr(module, "BATCH", 1 << 16)


def recipe(models: dict[str, tiny.Model], method: str, **more: Any) -> dict[str, Any]:
    names = {"passthrough": ["a"], "slerp": ["base", "a"]}.get(method, ["a", "b"])
    found = {"models": [entry(models[name]) for name in names], **RECIPES[method], **more}
    return (
        found
        if method in ("linear", "karcher", "passthrough")
        else found | {"base_model": str(models["base"])}
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("method", RECIPES)
def test_the_same_bytes_and_fingerprints_as_block_by_block(
    wide: dict[str, tiny.Model], tmp_path: Path, method: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    real = Express._go

    def go(self: Express, program: Any, kind: str, *rest: Any) -> Any:
        calls.append(kind)
        return real(self, program, kind, *rest)

    monkeypatch.setattr(Express, "_go", go)
    _, quick = make(recipe(wide, method, dtype=dtype), tmp_path / "quick", threads=2)
    assert method == "passthrough" or "combine" in calls
    assert method not in ("slerp", "karcher", "model_stock") or "sums" in calls
    monkeypatch.setattr(Express, "of", staticmethod(lambda *rest: None))
    _, plain = make(recipe(wide, method, dtype=dtype), tmp_path / "plain", threads=2)
    assert tiny.tensor_bytes(quick.path) == tiny.tensor_bytes(plain.path)
    records = [json.loads((out.path / "smelt.json").read_text()) for out in (quick, plain)]
    assert records[0]["inputs"] == records[1]["inputs"] and records[0]["outputs"] == records[1]["outputs"]


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tiny.Model]:
    """Tensors of more blocks than are written at once."""
    return tiny.family(tmp_path_factory.mktemp("long"), "a", "b", hidden=512, inner=2400, vocab=300, layers=1)


@pytest.mark.parametrize("method", ["linear", "slerp", "passthrough"])
def test_blocks_that_are_written_together(
    long: dict[str, tiny.Model], tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = _take_long_spans(monkeypatch)
    _, quick = make(recipe(long, method, dtype="bfloat16"), tmp_path / "quick", threads=1)
    assert method == "passthrough" or max(spans) > WRITTEN * GRAIN
    monkeypatch.setattr(Express, "of", staticmethod(lambda *rest: None))
    monkeypatch.setattr(Express, "copy", lambda self, start, stop, scratch: start)
    _, plain = make(recipe(long, method, dtype="bfloat16"), tmp_path / "plain", threads=1)
    assert tiny.tensor_bytes(quick.path) == tiny.tensor_bytes(plain.path)
    records = [json.loads((out.path / "smelt.json").read_text()) for out in (quick, plain)]
    assert records[0]["inputs"] == records[1]["inputs"] and records[0]["outputs"] == records[1]["outputs"]


def _take_long_spans(monkeypatch: pytest.MonkeyPatch, then: Any = None) -> list[int]:
    """Merge whole tensors in one call; lengths of the spans asked for. ``then`` sees every span and how far it came."""
    for module in (execute, running):
        monkeypatch.setattr(module, "BATCH", 1 << 22)
    spans: list[int] = []
    real = Express.combine

    def combine(self: Express, start: int, stop: int, scratch: Any) -> int:
        spans.append(stop - start)
        reached = real(self, start, stop, scratch)
        if then is not None:
            then(self, start, stop, reached)
        return reached

    monkeypatch.setattr(Express, "combine", combine)
    return spans


@pytest.mark.parametrize("blocks", [5, 18])
def test_what_was_gathered_before_a_block_that_fails_is_in_the_file(
    long: dict[str, tiny.Model], tmp_path: Path, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    _, whole = make(recipe(long, "linear", dtype="bfloat16"), tmp_path / "whole", threads=1)
    expected = tiny.tensor_bytes(whole.path)[name]
    shutil.copytree(long["a"].path, tmp_path / "a")
    file = tmp_path / "a" / "model.safetensors"
    begin, _ = _span(file, name)
    found: list[tuple[int, bytes]] = []

    def then(express: Express, start: int, stop: int, reached: int) -> None:
        if start < reached < stop and express.out is not None:
            at, size = express.out.offset + 2 * start, 2 * (reached - start)
            found.append((reached, os.pread(express.out.fd, size, at)))

    _take_long_spans(monkeypatch, then)
    real = execute.Executor.run

    def run(self: execute.Executor) -> None:
        os.truncate(file, begin + 2 * (blocks * GRAIN + 100))
        real(self)

    monkeypatch.setattr(execute.Executor, "run", run)
    with pytest.raises(SmeltError, match=r"the file ends .* bytes early"):
        models = long | {"a": replace(long["a"], path=tmp_path / "a")}
        make(recipe(models, "linear", dtype="bfloat16"), tmp_path / "out", threads=1)
    assert found == [(blocks * GRAIN, expected[: 2 * blocks * GRAIN])]


def _span(file: Path, name: str) -> tuple[int, int]:
    """Where a tensor stands in a file: first and last byte."""
    raw = file.read_bytes()
    head = 8 + int.from_bytes(raw[:8], "little")
    begin, end = json.loads(raw[8:head])[name]["data_offsets"]
    return head + begin, head + end


@pytest.mark.parametrize("place", [0, 70_000, -1])
@pytest.mark.parametrize("method", ["linear", "slerp", "passthrough"])
def test_nan_in_an_input_is_named_and_nothing_is_left(tmp_path: Path, method: str, place: int) -> None:
    models = tiny.family(tmp_path, "a", "b", hidden=96, inner=1400, vocab=1500, layers=1)
    name = "model.layers.0.mlp.up_proj.weight"
    file = models["a"].path / "model.safetensors"
    begin, end = _span(file, name)
    count = (end - begin) // 2
    raw = bytearray(file.read_bytes())
    at = begin + 2 * (place % count)
    raw[at : at + 2] = np.uint16(0x7FC0).tobytes()
    file.write_bytes(raw)
    with pytest.raises(SmeltError, match=rf"{name}.* holds nan at element {place % count}"):
        make(recipe(models, method, dtype="bfloat16"), tmp_path / "out", threads=2)
    assert left_behind(tmp_path, "a", "b", "base") == []


def test_a_file_that_is_cut_short_meanwhile_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tiny.family(tmp_path, "a", "b", hidden=96, inner=1400, vocab=1500, layers=1)
    file = models["a"].path / "model.safetensors"
    real = execute.Executor.run

    def run(self: execute.Executor) -> None:
        with file.open("r+b") as opened:
            opened.truncate(file.stat().st_size // 2)
        real(self)

    monkeypatch.setattr(execute.Executor, "run", run)
    with pytest.raises(SmeltError, match=r"the file ends .* bytes early"):
        make(recipe(models, "linear", dtype="bfloat16"), tmp_path / "out", threads=2)
    assert left_behind(tmp_path, "a", "b", "base") == []
