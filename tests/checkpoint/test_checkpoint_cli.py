"""``smelt verify`` and ``smelt inspect`` as a person and as a script meet them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ckpt_tools import raw_file, save

CONFIG = {
    "architectures": ["TinyForCausalLM"], "model_type": "tiny", "vocab_size": 10, "num_hidden_layers": 2,
    "layer_types": ["full_attention", "sliding"], "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    arrays = {"model.embed_tokens.weight": np.ones((10, 4)), "model.norm.weight": np.ones(4)}
    for layer in range(2):
        arrays[f"model.layers.{layer}.mlp.up.weight"] = np.ones((6, 4))
    save(folder / "model.safetensors", arrays)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def smelt(*arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line."""
    code = "from smelt.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={"COLUMNS": "120", "PATH": ""})
    return done.returncode, done.stdout, done.stderr


def test_verify_says_sound(model: Path) -> None:
    code, out, err = smelt("verify", model)
    assert code == 0 and err == ""
    assert out.splitlines()[0].startswith("read 4 tensors, 368 B in ") and out.endswith(f"{model}: sound\n")


def test_verify_names_what_is_wrong_and_exits_1(model: Path) -> None:
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-4:] = b"\x00\x00\xc0\x7f"
    (model / "model.safetensors").write_bytes(content)
    (model / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 5}))
    code, out, _ = smelt("verify", model)
    assert code == 1
    assert (
        "problem: model.safetensors, tensor 'model.layers.1.mlp.up.weight': 1 of 24 values are NaN or Inf"
        in out
    )
    assert "problem: config.json: num_hidden_layers is 5, but the weights hold layers" in out
    assert smelt("verify", model, "--allow-nonfinite", "--json")[0] == 1
    code, out, _ = smelt("verify", model, "--json")
    report = json.loads(out)
    assert code == 1 and not report["ok"] and len(report["problems"]) == 2 and report["tensors"] == 4


def test_verify_of_a_corrupt_file_and_of_nothing(model: Path) -> None:
    raw_file(model / "model.safetensors", "{", b"")
    code, out, _ = smelt("verify", model)
    assert code == 1 and "is not valid JSON" in out
    code, out, err = smelt("verify", model.parent / "tini")
    assert code == 2 and out == "" and "did you mean" in err and "Traceback" not in err


def test_inspect_for_people(model: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(b"left over")
    code, out, err = smelt("inspect", model)
    assert code == 0 and err == ""
    for line in (
        "architecture  TinyForCausalLM",
        "parameters    92 in 4 tensors",
        "weights       368 B in 1 file",
        "layers        2 under model.layers. (num_hidden_layers; 192 B)",
        "vocabulary    10 rows in model.embed_tokens.weight",
        "head          tied to the embedding",
        "per layer     layer_types",
        "odd: beside the weights that are read: 'pytorch_model.bin'",
    ):
        assert line in out, line
    assert "model.norm.weight" not in out


def test_inspect_lists_tensors(model: Path) -> None:
    _, out, _ = smelt("inspect", model, "--tensors")
    assert out.count("mlp.up.weight") == 2 and "[10, 4]" in out
    _, out, _ = smelt("inspect", model, "--filter", "norm")
    assert "model.norm.weight" in out and "mlp.up" not in out
    _, out, _ = smelt("inspect", model, "--filter", "nrom")
    assert "no tensor has 'nrom' in its name" in out


def test_inspect_for_machines(model: Path) -> None:
    code, out, _ = smelt("inspect", model, "--json", "--filter", "layers.1")
    data: dict[str, Any] = json.loads(out)
    assert code == 0 and data["parameters"] == 92 and data["tied"] is True and data["odd"] == []
    assert data["stacks"] == [
        {
            "prefix": "model.layers.",
            "layers": 2,
            "bytes": 192,
            "config_keys": ["num_hidden_layers"],
            "main": True,
        }
    ]
    assert data["dtypes"] == {"F32": {"tensors": 4, "parameters": 92, "bytes": 368}}
    assert data["roles"]["embedding"] == {"tensors": 1, "parameters": 40, "bytes": 160}
    assert [row["name"] for row in data["tensors"]] == ["model.layers.1.mlp.up.weight"]


def test_inspect_of_nothing(model: Path) -> None:
    code, out, err = smelt("inspect", model.parent / "tini")
    assert code == 2 and out == "" and "did you mean" in err and "Traceback" not in err


def test_neither_command_imports_torch_and_the_room_is_quick(model: Path) -> None:
    code = (
        "import sys, time; began = time.process_time()\n"
        "import smelt.checkpoint; took = time.process_time() - began\n"
        "from smelt.cli import main\n"
        f"try: main(['inspect', {str(model)!r}])\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules, took)"
    )
    done = min(
        (
            subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
            for _ in range(3)
        ),
        key=lambda out: float(out.split()[-1]),
    )
    torch, transformers, took = done.split()[-3:]
    assert (torch, transformers) == ("False", "False") and float(took) < 0.1
