"""The steering commands, run as a user runs them, on real tiny models in directories."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import latent_tiny as tiny
import pytest
import torch
from typer.testing import CliRunner

from smelt.core.errors import LatentError
from smelt.latent.model_cache import clear_model_cache
from smelt.latent.steer_cli import STEER_APP
from smelt.latent.steer_files import parse_layers, read_pairs, read_prompts, split_weight, weighted_sum
from smelt.latent.steering import SteeringVector


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Directories ``base`` and ``tuned``, prompts, contrast pairs."""
    root = tmp_path_factory.mktemp("steer")
    for name, seed in (("base", 0), ("tuned", 1)):
        tiny.tiny_causal("llama", seed).save_pretrained(root / name)
        tiny.byte_tokenizer().save_pretrained(root / name)
    (root / "prompts.txt").write_text("one line\n\nanother line\n")
    rows = [{"positive": f"glad {i}{i}", "negative": f"sad {i}{i}"} for i in range(4)]
    (root / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    yield root
    clear_model_cache()


def run(*arguments) -> str:
    result = CliRunner().invoke(STEER_APP, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_extract_from_two_models_then_show(folder, tmp_path):
    out = tmp_path / "v.safetensors"
    run(
        "extract", folder / "base", "--donor", folder / "tuned", "--prompts", folder / "prompts.txt",
        "--layers", "1,3-4", "--out", out,
    )  # fmt: skip
    shown = json.loads(run("show", out, "--json"))
    assert list(shown["norms"]) == ["1", "3", "4"]
    assert shown["n_layers"] == 4
    assert shown["made"] == {
        "donor": str(folder / "tuned"), "how": "difference", "norm": "none", "position": "all",
        "prompts": 2, "tokens": 20,
    }  # fmt: skip
    text = run("show", out)
    assert "hidden size: 32" in text
    assert "length" in text


@pytest.mark.parametrize("method", ["mean", "pca_diff", "pca_center"])
def test_extract_from_pairs_straight_to_gguf(folder, tmp_path, method):
    out = tmp_path / "v.gguf"
    options = ("--method", method, "--position", "all", "--out", out, "--json")
    run("extract", folder / "base", "--pairs", folder / "pairs.jsonl", *options)
    assert SteeringVector.load(out).layers == [2, 3, 4]


def test_apply_prints_the_steered_text_and_the_baseline(folder, tmp_path):
    vector = SteeringVector(
        {2: torch.randn(32, generator=torch.Generator().manual_seed(0))}, 4, model_type="llama"
    )
    file = vector.save(tmp_path / "v.safetensors")
    settings = ("-p", "hi", "-p", "ho", "--max-new-tokens", 8, "--baseline", "--json")
    rows = [json.loads(line) for line in run("apply", folder / "base", f"{file}=2", *settings).splitlines()]
    assert [row["prompt"] for row in rows] == ["hi", "ho"]
    assert any(row["steered"] != row["baseline"] for row in rows)
    undone = run("apply", folder / "base", f"{file}=2", f"{file}=-2", *settings)
    assert all(row["steered"] == row["baseline"] for row in map(json.loads, undone.splitlines()))
    raw = run("apply", folder / "base", file, "-p", "hi", "--raw", "--max-new-tokens", 4)
    assert "steered:" in raw
    late = run(
        "apply", folder / "base", f"{file}=3", *settings, "--generated-only", "--keep-norm", "--alpha", 0.5
    )
    assert len(late.splitlines()) == 2


def test_convert_there_and_back(tmp_path):
    vector = SteeringVector({2: torch.tensor([3.0, 4.0]), 3: torch.tensor([0.0, 2.0])}, 6, model_type="llama")
    source = vector.save(tmp_path / "v.safetensors")
    run("convert", source, tmp_path / "v.gguf", "--unit", "--scale", 2)
    run("convert", tmp_path / "v.gguf", tmp_path / "w.safetensors", "--n-layers", 6, "--layers", 2)
    again = SteeringVector.load(tmp_path / "w.safetensors")
    assert again == SteeringVector({2: torch.tensor([1.2, 1.6])}, 6)
    with pytest.raises(LatentError, match="--drop-early"):
        run(
            "convert",
            SteeringVector({1: torch.ones(2)}).save(tmp_path / "e.safetensors"),
            tmp_path / "e.gguf",
        )


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--donor", "x"),
        ("--prompts", "x"),
        ("--positive", "x"),
        ("--pairs", "x", "--negative", "y"),
        ("--pairs", "x", "--positive", "y", "--negative", "z"),
        ("--donor", "x", "--prompts", "y", "--pairs", "z"),
    ],
)
def test_unclear_sources_are_refused_before_anything_is_loaded(tmp_path, options):
    with pytest.raises(LatentError, match="do not say what to compare"):
        run("extract", "nowhere", "--out", tmp_path / "v", *options)


def test_missing_models_and_prompts_are_explained(folder, tmp_path):
    file = SteeringVector({2: torch.ones(32)}).save(tmp_path / "v.safetensors")
    with pytest.raises(LatentError, match="no prompts"):
        run("apply", folder / "base", file)
    with pytest.raises(LatentError, match="cannot load a model from"):
        run("apply", tmp_path / "nowhere", file, "-p", "hi")


def test_reading_layers_weights_and_prompt_files(tmp_path):
    assert parse_layers(None) is None
    assert parse_layers("5, 2-3") == [2, 3, 5]
    for wrong in ("", "a", "3-2", "1,,2", "-1"):
        with pytest.raises(LatentError, match="numbers and ranges"):
            parse_layers(wrong)
    assert split_weight("a=b.gguf") == (Path("a=b.gguf"), 1.0)
    assert split_weight("a=.5") == (Path("a"), 0.5)
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a"}\n"b"\n{"messages": [{"role": "user", "content": "c"}]}\n')
    assert read_prompts(file) == ["a", "b", [{"role": "user", "content": "c"}]]
    for text, said in (
        ("{", "p.jsonl:1: not JSON"),
        ('{"x": 1}', "no prompt"),
        ("", "no prompts"),
        ("3", "no prompt"),
    ):
        file.write_text(text)
        with pytest.raises(LatentError, match=said):
            read_prompts(file)
    file.write_text('{"positive": "a"}')
    with pytest.raises(LatentError, match="not a pair"):
        read_pairs(file)
    with pytest.raises(LatentError, match="cannot read"):
        read_prompts(tmp_path / "none.txt")


def test_weighted_sums_of_files(tmp_path):
    a = SteeringVector({2: torch.ones(3), 3: torch.ones(3)}).save(tmp_path / "a.safetensors")
    b = SteeringVector({2: torch.ones(3)}).save(tmp_path / "b.safetensors")
    total = weighted_sum([f"{a}=2", f"{b}=-0.5"], [2])
    assert total == SteeringVector({2: torch.full((3,), 1.5)})


def test_the_module_itself_imports_nothing_heavy():
    """Measured on the file alone: what the package imports on the way is its own affair."""
    source = Path(sys.modules["smelt.latent.steer_cli"].__file__)
    code = (
        "import sys, types, importlib.util as u\n"
        "for name in ('smelt.latent',): sys.modules[name] = types.ModuleType(name)\n"
        f"spec = u.spec_from_file_location('steer_cli', {str(source)!r})\n"
        "m = u.module_from_spec(spec); spec.loader.exec_module(m)\n"
        "print([n for n in ('torch', 'transformers', 'numpy') if n in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
