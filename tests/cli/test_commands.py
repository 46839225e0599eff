"""The commands as a user meets them: output, exit codes, messages, nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

SMELT = [sys.executable, "-m", "smelt"]


def smelt(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder."""
    return subprocess.run(
        [*SMELT, *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def write_model(folder: Path, seed: int, rows: int = 32, layers: int = 2) -> None:
    """A tiny llama-shaped checkpoint."""
    draw = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (rows, 8), "model.norm.weight": (8,)}
    for layer in range(layers):
        shapes[f"model.layers.{layer}.mlp.up_proj.weight"] = (16, 8)
        shapes[f"model.layers.{layer}.mlp.down_proj.weight"] = (8, 16)
    folder.mkdir(parents=True)
    save_file(
        {n: draw.normal(size=s).astype(np.float32) for n, s in shapes.items()}, folder / "model.safetensors"
    )
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": rows, "hidden_size": 8,
        "num_hidden_layers": layers, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Three models and a recipe."""
    for seed, name in enumerate(("base", "a", "b")):
        write_model(tmp_path / name, seed)
    recipe = """merge_method: ties
base_model: base
models:
  - model: a
    parameters: {weight: 0.5}
  - model: b
    parameters: {weight: 0.5}
parameters: {density: 0.5}
"""
    (tmp_path / "ties.yml").write_text(recipe)
    return tmp_path


def test_merge_says_what_it_did_and_where(shop: Path) -> None:
    done = smelt("merge", "ties.yml", "out", cwd=shop)
    assert done.returncode == 0, done.stderr
    assert "merged and verified 6 tensors" in done.stdout and "-> out" in done.stdout
    assert {path.name for path in (shop / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
        "smelt.json",
    }


def test_merge_in_json_names_every_output(shop: Path) -> None:
    done = smelt("merge", "ties.yml", "out", "--json", cwd=shop)
    data = json.loads(done.stdout)
    assert data["tensors"] == 6 and len(data["outputs"]) == 6


def test_quiet_is_quiet(shop: Path) -> None:
    done = smelt("merge", "ties.yml", "out", "-q", cwd=shop)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_output_that_is_not_empty_is_refused_unless_overwritten(shop: Path) -> None:
    assert smelt("merge", "ties.yml", "out", "-q", cwd=shop).returncode == 0
    again = smelt("merge", "ties.yml", "out", cwd=shop)
    assert again.returncode == 2 and "not empty" in again.stderr and "--overwrite" in again.stderr
    assert smelt("merge", "ties.yml", "out", "-q", "--overwrite", cwd=shop).returncode == 0


def test_plan_shows_and_explains_without_writing(shop: Path) -> None:
    done = smelt("plan", "ties.yml", "--tensors", cwd=shop)
    assert done.returncode == 0 and "no problems" in done.stdout and "ties 6 tensors" in done.stdout
    told = json.loads(smelt("plan", "ties.yml", "--explain", "model.norm.weight", "--json", cwd=shop).stdout)
    assert told["parameters"]["density"] == {"value": [0.5, 0.5], "set by": ["recipe", "recipe"]}
    assert [entry["density"] for entry in told["kept"]] == [0.5, 0.5]
    assert sorted(path.name for path in shop.iterdir()) == ["a", "b", "base", "ties.yml"]


def test_explain_gives_the_coefficients_that_are_used(shop: Path) -> None:
    (shop / "linear.yml").write_text(
        "merge_method: linear\nmodels:\n  - {model: a, parameters: {weight: 3}}\n  - {model: b, parameters: {weight: 1}}\n"
    )
    told = json.loads(
        smelt("plan", "linear.yml", "--explain", "model.norm.weight", "--json", cwd=shop).stdout
    )
    assert told["coefficients"] == {"a": 0.75, "b": 0.25}


def test_explain_of_an_unknown_tensor_names_the_nearest(shop: Path) -> None:
    done = smelt("plan", "ties.yml", "--explain", "model.norm.wieght", cwd=shop)
    assert done.returncode == 2 and "did you mean 'model.norm.weight'" in done.stderr


def test_rerun_reproduces_and_notices_a_changed_input(shop: Path) -> None:
    smelt("merge", "ties.yml", "out", "-q", cwd=shop)
    again = smelt("rerun", "out", cwd=shop)
    assert again.returncode == 0 and "6 of 6 tensors are the same: the record is reproduced" in again.stdout
    raw = bytearray((shop / "a" / "model.safetensors").read_bytes())
    raw[-2] ^= 0x40
    (shop / "a" / "model.safetensors").write_bytes(raw)
    changed = smelt("rerun", "out", cwd=shop)
    assert changed.returncode == 1 and "input changed: a:" in changed.stdout


def test_verify_finds_a_flipped_bit(shop: Path) -> None:
    smelt("merge", "ties.yml", "out", "-q", cwd=shop)
    assert smelt("verify", "out", cwd=shop).returncode == 0
    raw = bytearray((shop / "out" / "model.safetensors").read_bytes())
    raw[-2] ^= 0x01
    (shop / "out" / "model.safetensors").write_bytes(raw)
    done = smelt("verify", "out", cwd=shop)
    assert done.returncode == 1 and "model." in done.stdout + done.stderr


def test_methods_lists_and_explains(shop: Path) -> None:
    assert "task_arithmetic" in smelt("methods", cwd=shop, COLUMNS="160").stdout
    one = smelt("methods", "ties", cwd=shop, COLUMNS="160").stdout
    assert "density" in one and "merge_method: ties" in one
    wrong = smelt("methods", "tise", cwd=shop)
    assert wrong.returncode == 2 and "did you mean 'ties'" in wrong.stderr


BAD = {
    "missing recipe": (["merge", "nope.yml", "out"], "no recipe file"),
    "unknown method": (["merge", "typo.yml", "out"], "did you mean 'dare_ties'"),
    "missing model": (["merge", "gone.yml", "out"], "gone_model"),
    "other depth": (["merge", "deep.yml", "out"], "different depth"),
    "other shape": (["merge", "wide.yml", "out"], "[40, 8] in wide/model.safetensors but [32, 8] in"),
    "bad policy": (["merge", "ties.yml", "out", "--missing", "drop"], "--missing"),
    "bad size": (["merge", "ties.yml", "out", "--shard-size", "5 parsecs"], "not a size"),
    "little memory": (["merge", "ties.yml", "out", "--max-ram", "1MB"], "--max-ram"),
    "no device": (["merge", "ties.yml", "out", "--device", "cuda:7"], "cuda"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_message_and_no_output(case: str, shop: Path) -> None:
    ties = (shop / "ties.yml").read_text()
    (shop / "typo.yml").write_text(ties.replace("merge_method: ties", "merge_method: dare-ties"))
    (shop / "gone.yml").write_text(ties.replace("model: a", "model: ./gone_model"))
    write_model(shop / "deep", 3, layers=3)
    (shop / "deep.yml").write_text(ties.replace("model: a", "model: deep"))
    write_model(shop / "wide", 4, rows=40)
    (shop / "wide.yml").write_text(ties.replace("model: a", "model: wide"))
    words, message = BAD[case]
    before = sorted(path.name for path in shop.iterdir())
    done = smelt(*words, cwd=shop)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert sorted(path.name for path in shop.iterdir()) == before


def test_nan_is_named_and_can_be_allowed(shop: Path) -> None:
    raw = bytearray((shop / "a" / "model.safetensors").read_bytes())
    raw[-4:] = np.float32("nan").tobytes()
    (shop / "a" / "model.safetensors").write_bytes(raw)
    done = smelt("merge", "ties.yml", "out", cwd=shop)
    assert (
        done.returncode == 2
        and "holds nan at element" in done.stderr
        and "a/model.safetensors" in done.stderr
    )
    assert not (shop / "out").exists() and not list(shop.glob(".*"))
    assert smelt("merge", "ties.yml", "out", "--allow-nonfinite", cwd=shop).returncode == 0


def test_every_command_has_help_with_an_example(shop: Path) -> None:
    listed = smelt("--help", cwd=shop, COLUMNS="120").stdout
    for command in ("merge", "plan", "methods", "inspect", "verify", "rerun", "schema"):
        assert command in listed
        text = smelt(command, "--help", cwd=shop, COLUMNS="120").stdout
        assert f"smelt {command}" in text.replace("Usage: smelt", "", 1)


def test_version(shop: Path) -> None:
    from smelt import __version__

    assert smelt("--version", cwd=shop).stdout.strip() == f"smelt {__version__}"
