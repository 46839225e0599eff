"""Many blocks in one compiled call: the same bytes and the same errors as block by block."""

from __future__ import annotations

import json
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
from smelt.engine.express import Express

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


@pytest.mark.parametrize("place", [0, 70_000, -1])
@pytest.mark.parametrize("method", ["linear", "slerp", "passthrough"])
def test_nan_in_an_input_is_named_and_nothing_is_left(tmp_path: Path, method: str, place: int) -> None:
    models = tiny.family(tmp_path, "a", "b", hidden=96, inner=1400, vocab=1500, layers=1)
    name = "model.layers.0.mlp.up_proj.weight"
    file = models["a"].path / "model.safetensors"
    raw = bytearray(file.read_bytes())
    head = 8 + int.from_bytes(raw[:8], "little")
    begin, end = json.loads(raw[8:head])[name]["data_offsets"]
    count = (end - begin) // 2
    at = head + begin + 2 * (place % count)
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
