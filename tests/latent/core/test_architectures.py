"""The equality battery on every decoder family: ratio 0, ratio 1, caches, padding; and clear refusals."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from latent_tiny import prompt, tiny_causal
from transformers import DynamicCache

from smelt.core.errors import LatentError
from smelt.latent import LatentMergedForCausalLM, Schedule, Site
from smelt.latent.adapters import find_decoder
from smelt.latent.sharing import prelude_modules

FAMILIES = (
    "llama", "qwen2", "qwen3", "mistral", "phi3", "phi", "olmo2", "olmo3", "gemma", "gemma2", "gemma3_text",
    "granite", "smollm3", "glm4", "mixtral", "qwen3_moe", "granitemoe", "gpt2", "gpt_neox", "gpt_bigcode",
    "gptj", "gpt_neo", "falcon", "bloom", "mpt", "opt", "cohere2", "starcoder2", "stablelm", "nemotron",
    "gpt_oss", "deepseek_v3",
)  # fmt: skip
SITES = {
    "slerp": [Site(2, "slerp", [0.5])],
    "lerp-last": [Site("last", "lerp", [0.6])],
    "regmean-feedback+task": [Site(1, "regmean", lam=0.5, feedback=True), Site(3, "task_vector", [0.4])],
    "ramp": [Site(2, "slerp", [0.9], schedule=Schedule("linear", 0.0, 1.0, 3))],
}


@pytest.fixture(scope="module", params=FAMILIES)
def trio(request: Any) -> Any:
    """(base, donor, merged) of one family."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    base, donor = tiny_causal(request.param, 1), tiny_causal(request.param, 2)
    return base, donor, LatentMergedForCausalLM.from_models(base, donor)


@torch.no_grad()
def test_ratio_zero_is_the_base_bit_for_bit(trio) -> None:
    base, _, merged = trio
    ids = prompt(9)
    expected = base(ids).logits
    for op in ("lerp", "slerp", "task_vector"):
        with merged.using([Site(2, op, [0.0])]):
            assert torch.equal(merged(ids).logits, expected)
        with merged.using([Site(2, op, [0.5])]):  # mixed in, per row, with ratio 0
            assert torch.equal(merged(ids, beta=torch.zeros(1)).logits, expected)
            assert not torch.equal(merged(ids).logits, expected)
    assert torch.equal(base(ids).logits, expected)


@torch.no_grad()
def test_ratio_one_is_the_stitched_model(trio) -> None:
    base, donor, merged = trio
    stitched = copy.deepcopy(base)
    lower, upper = find_decoder(donor, "donor"), find_decoder(stitched, "base")
    for name in prelude_modules(upper):
        setattr(upper.shell, name, getattr(lower.shell, name))
    for layer in range(3):
        upper.layers[layer] = lower.layers[layer]
    with merged.using([Site(3, "lerp", [1.0])]):
        torch.testing.assert_close(merged(prompt(9)).logits, stitched(prompt(9)).logits, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("scope", ["all", "generated"])
@pytest.mark.parametrize("sites", SITES.values(), ids=SITES)
def test_cached_equals_uncached(trio, sites, scope) -> None:
    _, _, merged = trio
    ids = prompt(12)
    with merged.using(sites, scope=scope):
        whole = merged(ids, mix_start=4, use_cache=False).logits
        cache = DynamicCache(config=merged.config)
        steps = [ids[:, :5], ids[:, 5:6], ids[:, 6:7], ids[:, 7:]]
        parts = [merged(step, mix_start=4, past_key_values=cache).logits for step in steps]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("scope", ["all", "generated"])
def test_left_padded_batch_equals_single_and_teacher_forcing(trio, scope) -> None:
    _, _, merged = trio
    long, short = prompt(9, seed=3), prompt(5, seed=4)
    batch = torch.cat([long, torch.cat([torch.full((1, 4), 258), short], 1)])
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "scope": scope,
               "output_logits": True, "return_dict_in_generate": True, "sites": SITES["slerp"]}  # fmt: skip
    together = merged.generate(batch, attention_mask=(batch != 258).long(), **options)
    alone = merged.generate(short, attention_mask=torch.ones_like(short), **options)
    for both, one in zip(together.logits, alone.logits, strict=True):
        torch.testing.assert_close(both[1], one[0], atol=2e-5, rtol=0)
    with merged.using(SITES["slerp"], scope=scope):
        forced = merged(alone.sequences[:, :-1], mix_start=4).logits[0, 4:]
    torch.testing.assert_close(forced, torch.cat(alone.logits), atol=2e-5, rtol=0)


REFUSED = {
    "mamba": "running state",
    "jamba": "running state",
    "qwen3_next": "running state",
    "gemma3n_text": "per-layer",
    "openai-gpt": "cache",
    "bert": "cache",
}


@pytest.mark.parametrize("family", REFUSED)
def test_unsuitable_families_are_refused_with_the_reason(family) -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model = tiny_causal(family, 1)
    with pytest.raises(LatentError, match=REFUSED[family]):
        LatentMergedForCausalLM.from_models(model, tiny_causal(family, 2))


def test_encoder_decoders_are_refused() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(
        T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    )
    with pytest.raises(LatentError, match="encoder-decoder"):
        LatentMergedForCausalLM.from_models(model, model)
