"""Donors that cost less: cut to the last site, sharing the base's tensors, an adapter only, int8."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from latent_tiny import prompt, skill_accuracy, tiny_causal
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from smelt.core.errors import LatentError
from smelt.latent import LatentMergedForCausalLM, ModelRef, Site
from smelt.latent.adapters import find_decoder
from smelt.latent.lora import own_bytes
from smelt.latent.quant import Int8Linear
from smelt.latent.sharing import shared_prefix
from smelt.latent.truncated import truncated_source

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}


def size(tensors: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: Any) -> Path:
    """A donor of 8 layers in many small shards, beside its base."""
    folder = tmp_path_factory.mktemp("sharded")
    tiny_causal("llama", 1, num_hidden_layers=8).save_pretrained(folder / "base")
    tiny_causal("llama", 2, num_hidden_layers=8).save_pretrained(folder / "donor", max_shard_size="20KB")
    return folder


@torch.no_grad()
@pytest.mark.parametrize("layer", [1, 3, 8])
def test_a_cut_donor_gives_the_same_bits_as_a_whole_one(sharded, layer) -> None:
    sites = [Site(layer, "slerp", [0.5])]
    cut = LatentMergedForCausalLM.from_models(sharded / "base", sharded / "donor", sites)
    whole = LatentMergedForCausalLM.from_models(sharded / "base", sharded / "donor", sites, depth="all")
    assert (cut.tower(0).depth, whole.tower(0).depth) == (layer, 8)
    assert torch.equal(cut(prompt(9)).logits, whole(prompt(9)).logits)
    assert not any("lm_head" in name for name, _ in cut.donors.named_parameters())


@torch.no_grad()
def test_shards_above_the_last_site_need_not_exist(sharded, tmp_path) -> None:
    expected = LatentMergedForCausalLM.from_models(sharded / "base", sharded / "donor", [Site(3)])(
        prompt(9)
    ).logits
    index = json.loads((sharded / "donor" / "model.safetensors.index.json").read_text())
    config = AutoModelForCausalLM.from_pretrained(sharded / "base").config
    partial = tmp_path / "partial"
    partial.mkdir()
    with truncated_source(str(sharded / "donor"), None, config, 3) as (folder, cut):
        opened = {path.name for path in Path(folder).glob("*.safetensors")}
        assert cut.num_hidden_layers == 3
    for name in [*opened, "config.json", "model.safetensors.index.json"]:
        (partial / name).write_bytes((sharded / "donor" / name).read_bytes())
    assert len(opened) < 0.6 * len(set(index["weight_map"].values()))
    merged = LatentMergedForCausalLM.from_models(sharded / "base", partial, [Site(3)])
    assert torch.equal(merged(prompt(9)).logits, expected)
    with pytest.raises(LatentError, match="a shard it does not have"):
        LatentMergedForCausalLM.from_models(sharded / "base", partial, [Site(6)])


@torch.no_grad()
def test_only_the_needed_shards_are_fetched_from_the_hub(sharded, tmp_path, monkeypatch) -> None:
    """An offline hub cache that holds only what a cut at layer 3 needs."""
    with truncated_source(
        str(sharded / "donor"), None, tiny_causal("llama", 1, num_hidden_layers=8).config, 3
    ) as (f, _):
        needed = {path.name for path in Path(f).glob("*.safetensors")}
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--team--donor"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    for name in [*needed, "config.json", "model.safetensors.index.json"]:
        (snapshot / name).write_bytes((sharded / "donor" / name).read_bytes())
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    merged = LatentMergedForCausalLM.from_models(sharded / "base", "team/donor", [Site(3)])
    assert merged.tower(0).depth == 3
    expected = LatentMergedForCausalLM.from_models(sharded / "base", sharded / "donor", [Site(3)])
    assert torch.equal(merged(prompt(9)).logits, expected(prompt(9)).logits)
    with pytest.raises(LatentError):
        LatentMergedForCausalLM.from_models(sharded / "base", "team/donor", [Site(7)])


def frozen_below(layer: int, family: str = "llama") -> tuple[Any, Any]:
    """A base and a fine-tune whose embeddings and first layers were frozen."""
    base, donor = tiny_causal(family, 1), tiny_causal(family, 2)
    mine, theirs = find_decoder(base, "base"), find_decoder(donor, "donor")
    model = theirs.shell
    for name, child in mine.shell.named_children():
        if name == mine.layers_name:
            break
        getattr(model, name).load_state_dict(child.state_dict())
    for index in range(layer):
        theirs.layers[index].load_state_dict(mine.layers[index].state_dict())
    return base, donor


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_shared_prefix_runs_once_with_the_same_bits(family) -> None:
    base, donor = frozen_below(2, family)
    assert shared_prefix(find_decoder(base, "base"), find_decoder(donor, "donor")) == 2
    merged = LatentMergedForCausalLM.from_models(base, donor, [Site(3, "slerp", [0.5])])
    calls: list[int] = []
    for index, layer in enumerate(merged.tower(0).layers):
        layer.register_forward_pre_hook(lambda *_, i=index: calls.append(i))
    ids = prompt(9)
    fast, out = merged(ids).logits, merged.generate(ids, **GREEDY)
    assert set(calls) == {2}
    merged._towers[0].shared = -1
    merged._plans = {}
    assert torch.equal(merged(ids).logits, fast) and torch.equal(merged.generate(ids, **GREEDY), out)
    assert 0 in calls


@torch.no_grad()
def test_a_lower_site_or_steering_makes_the_donor_branch_earlier() -> None:
    from smelt.latent import Steer

    base, donor = frozen_below(3)
    other = tiny_causal("llama", 5)
    settings = {
        "sites": [Site(1, "lerp", [0.0, 0.5]), Site("last", "slerp", [0.4, 0.3])],
        "steer": [Steer(2, torch.ones(32), alpha=0.1)],
    }
    merged = LatentMergedForCausalLM.from_models(base, [donor, other], **settings)
    assert merged._plan(merged.settings, None).start == (1, 0)
    fast = merged(prompt(9)).logits
    merged._towers[0].shared = -1
    merged._plans = {}
    torch.testing.assert_close(merged(prompt(9)).logits, fast, atol=1e-6, rtol=0)


def test_shared_tensors_are_stored_once(tmp_path) -> None:
    base, donor = frozen_below(2)
    base.save_pretrained(tmp_path / "base")
    donor.save_pretrained(tmp_path / "donor")
    merged = LatentMergedForCausalLM.from_models(tmp_path / "base", tmp_path / "donor", [Site(3)])
    alone = size(merged.base.parameters())
    own = size(merged.tower(0).layers[2].parameters())
    together = size({t.data_ptr(): t for t in merged.parameters()}.values())
    assert together <= alone + own + 32 * 4  # and one final norm
    separate = LatentMergedForCausalLM.from_models(
        tmp_path / "base", tmp_path / "donor", [Site(3)], share=False
    )
    assert size({t.data_ptr(): t for t in separate.parameters()}.values()) > together + 8000
    with torch.no_grad():
        assert torch.equal(merged(prompt(5)).logits, separate(prompt(5)).logits)
        merged.to(torch.bfloat16)
        assert merged.tower(0).layers[0].mlp.up_proj.weight is merged.base.model.layers[0].mlp.up_proj.weight


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: Any) -> Path:
    """A base, a LoRA adapter on its upper layers, and the two merged into one checkpoint."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapter")
    tiny_causal("llama", 1).save_pretrained(folder / "base")
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], layers_to_transform=[1, 2, 3]
    )
    with warnings.catch_warnings():  # PEFT reads a name that transformers renamed
        warnings.simplefilter("ignore", FutureWarning)
        tuned = get_peft_model(tiny_causal("llama", 1), config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    tuned.save_pretrained(folder / "lora")
    tuned.merge_and_unload().save_pretrained(folder / "tuned")
    return folder


@torch.no_grad()
def test_a_lora_donor_holds_the_adapter_only(adapter) -> None:
    sites = [Site(3, "slerp", [0.5])]
    base = AutoModelForCausalLM.from_pretrained(adapter / "base")
    expected = base(prompt(9)).logits
    merged = LatentMergedForCausalLM.from_models(base, ModelRef(adapter=str(adapter / "lora")), sites)
    full = LatentMergedForCausalLM.from_models(base, adapter / "tuned", sites)
    torch.testing.assert_close(merged(prompt(9)).logits, full(prompt(9)).logits, atol=2e-5, rtol=0)
    assert torch.equal(base(prompt(9)).logits, expected)
    assert not torch.equal(merged(prompt(9)).logits, expected)
    ranks = 2 * (4 * (32 + 32) + 4 * (32 + 48)) * 4  # layers 1 and 2: q_proj and up_proj
    assert own_bytes(merged.donors[0], base) == ranks
    assert merged._plan(merged.settings, None).start == (1,)
    torch.testing.assert_close(
        merged.generate(prompt(9), **GREEDY), full.generate(prompt(9), **GREEDY), atol=0, rtol=0
    )


@torch.no_grad()
def test_a_lora_donor_is_saved_and_refused_like_others(adapter, tmp_path) -> None:
    recipe = {"base": "base", "donors": [{"adapter": "lora"}], "sites": [{"layer": "last"}]}
    merged = LatentMergedForCausalLM.from_recipe(recipe, folder=adapter)
    merged.save_pretrained(tmp_path / "saved", embed_weights=True)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(again(prompt(9)).logits, merged(prompt(9)).logits)
    assert size(load_file(tmp_path / "saved/donors/0/adapter_model.safetensors").values()) < 20_000
    with pytest.raises(LatentError, match="adapter_config"):
        LatentMergedForCausalLM.from_models(adapter / "base", ModelRef(adapter=str(adapter / "tuned")))


@torch.no_grad()
def test_an_int8_donor_is_small_and_close(sharded) -> None:
    sites = [Site(4, "slerp", [0.5])]
    full = LatentMergedForCausalLM.from_models(sharded / "base", sharded / "donor", sites)
    small = LatentMergedForCausalLM.from_models(
        sharded / "base", sharded / "donor", sites, donor_quant="int8"
    )
    layers = [find_decoder(m.donors[0], "donor").layers for m in (full, small)]
    assert isinstance(layers[1][0].mlp.up_proj, Int8Linear)
    bytes_of = [size([*each.parameters(), *each.buffers()]) for each in layers]
    assert bytes_of[1] < 0.35 * bytes_of[0]
    ids = prompt(9)
    gap = (small(ids).logits - full(ids).logits).abs().max()
    assert 0 < gap < 0.1 * full(ids).logits.std()
    assert small.generate(ids, **GREEDY).shape == (1, 17)
    assert small.to(torch.bfloat16)(ids).logits.dtype == torch.bfloat16


def test_an_int8_donor_keeps_its_skill(skilled, skilled_dir) -> None:
    sites = [Site("last", "slerp", [0.5])]
    merged = LatentMergedForCausalLM.from_models(skilled[0], skilled_dir / "s", sites, donor_quant="int8")
    full = LatentMergedForCausalLM.from_models(*skilled, sites)
    for skill in "rs":
        assert abs(skill_accuracy(merged, skill) - skill_accuracy(full, skill)) <= 0.1


def test_nf4_without_bitsandbytes_says_what_to_install(sharded) -> None:
    pytest.importorskip("torch")
    import importlib.util

    from smelt.core.errors import MissingExtraError

    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(MissingExtraError, match="bitsandbytes"):
            LatentMergedForCausalLM.from_models(
                sharded / "base", ModelRef(str(sharded / "donor"), quant="nf4")
            )
    else:
        merged = LatentMergedForCausalLM.from_models(
            sharded / "base", ModelRef(str(sharded / "donor"), quant="nf4"), [Site(3)]
        )
        assert merged.generate(prompt(5), **GREEDY).shape == (1, 13)
