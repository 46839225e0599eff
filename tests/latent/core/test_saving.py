"""A saved latent merge is a model directory like any other: Auto classes, pipeline, another process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from latent_tiny import byte_tokenizer, prompt, tiny_causal
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, pipeline

from smelt.core.errors import LatentError
from smelt.latent import EnsembleForCausalLM, LatentMergedForCausalLM, LatentRecipe, Schedule, Site, Steer

SITES = [Site("0.5n", "slerp", [0.4]), Site(3, "lerp", [0.5], schedule=Schedule("linear", 0.2, 1.0, 5))]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: Any) -> Path:
    """``base`` and ``donor`` saved with a tokenizer."""
    folder = tmp_path_factory.mktemp("parts")
    for seed, name in ((1, "base"), (2, "donor")):
        tiny_causal("llama", seed).save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def saved(parts: Path) -> Path:
    """A saved merge that refers to them."""
    steer = Steer(1, torch.linspace(-1, 1, 32), alpha=0.2, keep_norm=True)
    merged = LatentMergedForCausalLM.from_models(
        parts / "base", parts / "donor", SITES, scope="generated", steer=[steer]
    )
    merged.generation_config.max_new_tokens = 7
    merged.save_pretrained(parts / "merged")
    return parts / "merged"


@torch.no_grad()
def test_auto_classes_open_the_directory(parts, saved) -> None:
    config = AutoConfig.from_pretrained(saved)
    assert config.model_type == "latent_merged" and config.vocab_size == 264 and config.hidden_size == 32
    model = AutoModelForCausalLM.from_pretrained(saved)
    assert type(model) is LatentMergedForCausalLM and model.generation_config.max_new_tokens == 7
    assert [site.layer for site in model.settings.sites] == [
        "0.5n",
        3,
    ] and model.settings.scope == "generated"
    fresh = LatentMergedForCausalLM.from_models(
        tiny_causal("llama", 1), tiny_causal("llama", 2), SITES, scope="generated",
        steer=[Steer(1, torch.linspace(-1, 1, 32), alpha=0.2, keep_norm=True)],
    )  # fmt: skip
    ids = prompt(9)
    assert torch.equal(model(ids, mix_start=4).logits, fresh(ids, mix_start=4).logits)
    assert AutoTokenizer.from_pretrained(saved).chat_template == byte_tokenizer().chat_template


@torch.no_grad()
def test_round_trip_keeps_the_recipe_and_the_logits(saved, tmp_path) -> None:
    model = LatentMergedForCausalLM.from_pretrained(saved)
    model.set_sites([Site(2, "lerp", [0.9])], scope="all")
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(again(prompt(9)).logits, model(prompt(9)).logits)
    assert LatentRecipe.read(tmp_path / "again").settings.scope == "all"
    first, second = (LatentRecipe.read(saved) for _ in range(2))
    assert first.digest == second.digest != LatentRecipe.read(tmp_path / "again").digest


@torch.no_grad()
def test_a_self_contained_directory_can_be_moved(saved, tmp_path) -> None:
    model = LatentMergedForCausalLM.from_pretrained(saved)
    expected = model(prompt(9), mix_start=3).logits
    model.save_pretrained(tmp_path / "whole", embed_weights=True)
    recipe = json.loads((tmp_path / "whole" / "config.json").read_text())["recipe"]
    assert recipe["base"]["path"] == "base" and recipe["donors"][0]["path"] == "donors/0"
    shutil.move(tmp_path / "whole", tmp_path / "moved")
    moved = AutoModelForCausalLM.from_pretrained(tmp_path / "moved")
    assert torch.equal(moved(prompt(9), mix_start=3).logits, expected)
    assert moved.tower(0).depth == 3  # only the layers below the last site were stored


def test_models_without_a_path_need_their_weights_saved(tmp_path) -> None:
    merged = LatentMergedForCausalLM.from_models(tiny_causal("llama", 1), tiny_causal("llama", 2), [Site(2)])
    with pytest.raises(LatentError, match="embed_weights=True"):
        merged.save_pretrained(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    merged.save_pretrained(tmp_path / "whole", embed_weights=True)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "whole")) is LatentMergedForCausalLM


def test_a_recipe_file_names_models_beside_it(parts) -> None:
    text = "base: {path: base}\ndonors: [{path: donor}]\nscope: all\nsites: [{layer: 2, op: slerp}]\n"
    (parts / "recipe.yml").write_text(text)
    model = LatentMergedForCausalLM.from_recipe(parts / "recipe.yml")
    assert model.tower(0).depth == 2
    (parts / "broken.yml").write_text("base: [")
    with pytest.raises(LatentError, match="neither YAML nor JSON"):
        LatentMergedForCausalLM.from_recipe(parts / "broken.yml")


def test_steering_from_a_safetensors_file(parts) -> None:
    save_file({"1": torch.ones(32), "2": torch.zeros(32)}, parts / "vectors.safetensors")
    recipe = {
        "base": "base",
        "donors": [],
        "sites": [],
        "steer": [{"layer": 1, "file": "vectors.safetensors"}],
    }
    model = LatentMergedForCausalLM.from_recipe(recipe, folder=parts)
    assert torch.equal(model.settings.steer[0].delta, torch.ones(32))
    recipe["steer"][0]["key"] = "3"
    with pytest.raises(LatentError, match="no tensor '3'"):
        LatentMergedForCausalLM.from_recipe(recipe, folder=parts)


def test_pipeline_from_the_directory(saved) -> None:
    pipe = pipeline("text-generation", model=str(saved))
    model = pipe.model
    assert type(model) is LatentMergedForCausalLM
    texts = ["Hello", "A longer prompt"]
    options = {"max_new_tokens": 5, "do_sample": False, "return_full_text": False}
    batch = pipe(texts, batch_size=2, **options)
    assert [item[0]["generated_text"] for item in batch] == [
        pipe(t, **options)[0]["generated_text"] for t in texts
    ]
    messages = [{"role": "user", "content": "Hi"}]
    chat = pipe(messages, **options)
    tokens = pipe.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**tokens, max_new_tokens=5, do_sample=False)
    text = pipe.tokenizer.decode(out[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)
    assert chat[0]["generated_text"] == text


@pytest.mark.parametrize("line", ["import smelt.latent", "options = {'trust_remote_code': True}"])
def test_another_process_opens_it(saved, line, tmp_path) -> None:
    code = (
        f"options = {{}}\n{line}\nimport torch; torch.set_num_threads(1)\n"
        "from transformers import AutoModelForCausalLM\n"
        f"print(type(AutoModelForCausalLM.from_pretrained({str(saved)!r}, **options)).__name__)"
    )
    env = {
        "HF_MODULES_CACHE": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "PATH": "/usr/bin",
        "HOME": str(tmp_path),
    }
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env)
    assert run.stdout.split() == ["LatentMergedForCausalLM"], run.stderr[-2000:]


@torch.no_grad()
def test_ensembles_are_directories_too(parts, tmp_path) -> None:
    both = EnsembleForCausalLM.from_models([parts / "base", parts / "donor"], op="probs", weights=[0.3, 0.7])
    both.save_pretrained(parts / "ensemble")
    again = AutoModelForCausalLM.from_pretrained(parts / "ensemble")
    assert type(again) is EnsembleForCausalLM and again.mix == both.mix
    assert torch.equal(again(prompt(6)).logits, both(prompt(6)).logits)
    both.save_pretrained(tmp_path / "whole", embed_weights=True)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert torch.equal(whole(prompt(6)).logits, both(prompt(6)).logits)
