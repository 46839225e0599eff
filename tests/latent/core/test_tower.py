"""Donors that cannot run in lockstep: other rope, heads, depth, family, width."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from latent_tiny import prompt, tiny_causal
from transformers import AutoModelForCausalLM, DynamicCache

from smelt.core.errors import LatentError
from smelt.latent import LatentMergedForCausalLM, Site

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}
DONORS: dict[str, dict[str, Any]] = {
    "rope": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "heads": {"num_key_value_heads": 4, "num_attention_heads": 8, "head_dim": 4},
    "deeper": {"num_hidden_layers": 6},
    "qwen3": {"model_type": "qwen3"},
    "sliding": {"model_type": "mistral"},
    "gpt2": {"model_type": "gpt2"},
}
SITES = [Site(2, "slerp", [0.5]), Site("last", "lerp", [0.3])]


@pytest.fixture(scope="module", params=DONORS)
def pair(request: Any) -> Any:
    return tiny_causal("llama", 1), tiny_causal(seed=2, **{"model_type": "llama", **DONORS[request.param]})


@torch.no_grad()
@pytest.mark.parametrize("scope", ["all", "generated"])
def test_cached_uncached_padded_static_and_base(pair, scope) -> None:
    merged = LatentMergedForCausalLM.from_models(*pair, SITES, scope=scope)
    assert merged._towers[0].engine == "tower"
    ids = prompt(12)
    whole = merged(ids, mix_start=4, use_cache=False).logits
    cache = DynamicCache(config=merged.config)
    parts = [
        merged(s, mix_start=4, past_key_values=cache).logits for s in (ids[:, :5], ids[:, 5:6], ids[:, 6:])
    ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=0)
    plain = merged.generate(ids, **GREEDY)
    padded = torch.cat([torch.full((1, 3), 258), ids], 1)
    mask = (padded != 258).long()
    assert torch.equal(merged.generate(padded, attention_mask=mask, **GREEDY)[:, 3:], plain)
    static = merged.generate(padded, attention_mask=mask, cache_implementation="static", **GREEDY)
    assert torch.equal(static[:, 3:], plain)
    assert torch.equal(merged.generate(ids, cache_implementation="static", **GREEDY), plain)
    with merged.using([Site(2, "slerp", [0.0])]):
        assert torch.equal(merged(ids).logits, pair[0](ids).logits)


@torch.no_grad()
def test_both_engines_give_the_same_states() -> None:
    base, donor, ids = tiny_causal("llama", 1), tiny_causal("llama", 2), prompt(9)
    lock = LatentMergedForCausalLM.from_models(base, donor, SITES)
    tower = LatentMergedForCausalLM.from_models(base, donor, SITES, engine="tower")
    assert (lock._towers[0].engine, tower._towers[0].engine) == ("lockstep", "tower")
    assert torch.equal(lock(ids).logits, tower(ids).logits)
    assert torch.equal(lock.generate(ids, **GREEDY), tower.generate(ids, **GREEDY))


def test_a_ready_made_mask_is_refused_with_a_tower() -> None:
    merged = LatentMergedForCausalLM.from_models(tiny_causal("llama", 1), tiny_causal("qwen3", 2), SITES)
    with pytest.raises(LatentError, match="ready-made attention mask"):
        merged(prompt(4), attention_mask=torch.ones(1, 1, 4, 4, dtype=torch.bool).tril())


@torch.no_grad()
def test_donor_layers_choose_where_to_read() -> None:
    base, donor, ids = tiny_causal("llama", 1), tiny_causal("llama", 2, num_hidden_layers=8), prompt(9)
    merged = LatentMergedForCausalLM.from_models(base, donor, [Site(2, "lerp", [1.0])])
    states = donor(ids, output_hidden_states=True).hidden_states
    for sites, layer in (([Site(2, "lerp", [1.0])], 4), ([Site(2, "lerp", [1.0], donor_layers=(7,))], 7)):
        with merged.using(sites), merged.recording() as tape:
            merged(ids)
        torch.testing.assert_close(tape[2]["mixed"], states[layer])
    with pytest.raises(LatentError, match="beyond the last"):
        merged.set_sites([Site(2, donor_layers=(9,))])


@torch.no_grad()
def test_mixed_engines_side_by_side() -> None:
    base, same, other = tiny_causal("llama", 1), tiny_causal("llama", 2), tiny_causal("qwen3", 3)
    merged = LatentMergedForCausalLM.from_models(base, [same, other], [Site(2, "slerp", [0.3, 0.3])])
    assert [tower.engine for tower in merged._towers] == ["lockstep", "tower"]
    ids = prompt(9)
    cache = DynamicCache(config=merged.config)
    parts = [merged(s, past_key_values=cache).logits for s in (ids[:, :5], ids[:, 5:])]
    torch.testing.assert_close(torch.cat(parts, 1), merged(ids).logits, atol=2e-5, rtol=0)


@torch.no_grad()
def test_a_donor_of_another_width_needs_a_fitted_projection(tmp_path) -> None:
    base, donor = tiny_causal("llama", 1), tiny_causal("llama", 2, hidden_size=24, num_hidden_layers=3)
    batches = [
        prompt(40, rows=4, seed=7),
        {"input_ids": prompt(9), "attention_mask": torch.ones(1, 9, dtype=torch.long)},
    ]
    merged = LatentMergedForCausalLM.from_models(base, donor, [Site(2, "slerp", [0.5])], calibration=batches)
    ids = prompt(12)
    assert (merged(ids).logits - base(ids).logits).abs().max() > 0.01
    cache = DynamicCache(config=merged.config)
    parts = [merged(s, past_key_values=cache).logits for s in (ids[:, :5], ids[:, 5:])]
    torch.testing.assert_close(torch.cat(parts, 1), merged(ids).logits, atol=2e-5, rtol=0)
    with pytest.raises(LatentError, match="no projection for layer 3"):
        merged.set_sites([Site(3)])
    merged.fit_projections(batches, [Site(3)])
    merged.set_sites([Site(3)])
    merged.save_pretrained(tmp_path / "wide", embed_weights=True)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "wide")
    assert torch.equal(again(ids).logits, merged(ids).logits)


@torch.no_grad()
def test_a_projection_recovers_a_rotated_copy_of_the_base() -> None:
    """A donor whose states are the base's through an orthogonal map and zero padding: the fit undoes it."""
    base = tiny_causal("llama", 1)
    merged = LatentMergedForCausalLM.from_models(
        base,
        tiny_causal("llama", 1, hidden_size=48),
        [Site(0, "lerp", [1.0])],
        calibration=prompt(60, rows=8, seed=3),
    )
    rotation = torch.linalg.qr(torch.randn(48, 48, generator=torch.Generator().manual_seed(0)))[0][:32]
    merged.donors[0].model.embed_tokens.weight.copy_(base.model.embed_tokens.weight @ rotation)
    merged.fit_projections(prompt(60, rows=8, seed=3), ridge=1e-8)
    ids = prompt(12)
    torch.testing.assert_close(merged(ids).logits, base(ids).logits, atol=1e-3, rtol=0)
