"""Logit ensembles: each formula, the same caches and batches as the latent merge, models of any shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from latent_tiny import prompt, tiny_causal
from transformers import DynamicCache

from smelt.core.errors import LatentError
from smelt.latent import EnsembleForCausalLM, LogitMix, Schedule

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8}


@pytest.fixture(scope="module")
def models() -> list[Any]:
    """Different depth, width, architecture and embedding rows."""
    other = tiny_causal("gpt2", 3)
    return [
        tiny_causal("llama", 1),
        tiny_causal("qwen3", 2, num_hidden_layers=3, hidden_size=16, vocab_size=272),
        other,
    ]


@pytest.fixture(scope="module")
def both(models: list[Any]) -> EnsembleForCausalLM:
    return EnsembleForCausalLM.from_models(models[:2])


@torch.no_grad()
def test_formulas(models) -> None:
    ids = prompt(6)
    z = [model(ids).logits[..., :264] for model in models]
    p = [torch.softmax(item, -1) for item in z]
    expected = {
        ("logits", (0.3, 0.7)): 0.3 * z[0] + 0.7 * z[1],
        ("logprobs", (0.3, 0.7)): 0.3 * p[0].log() + 0.7 * p[1].log(),
        ("probs", (0.3, 0.7)): (0.3 * p[0] + 0.7 * p[1]).log(),
        ("probs", (1.0, 0.0)): p[0].log(),
        ("contrastive", (0.5,)): torch.where(
            p[0] >= 0.1 * p[0].amax(-1, keepdim=True), z[0] - 0.5 * z[1], -torch.inf
        ),
        ("proxy", (0.8,)): z[0] + 0.8 * (z[1] - z[2]),
    }
    for (op, weights), value in expected.items():
        used = models if op == "proxy" else models[:2]
        out = EnsembleForCausalLM.from_models(used, op, weights)(ids).logits
        torch.testing.assert_close(out, value, msg=lambda m, op=op: f"{op}: {m}")


@torch.no_grad()
@pytest.mark.parametrize("op", ["logits", "logprobs", "probs", "contrastive"])
def test_cached_padded_static_and_beams(both, op) -> None:
    ids = prompt(9)
    with both.using(LogitMix(op)):
        whole = both(ids, use_cache=False).logits
        cache = DynamicCache(config=both.config)
        parts = [both(step, past_key_values=cache).logits for step in (ids[:, :4], ids[:, 4:5], ids[:, 5:])]
        torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=0)
        plain = both.generate(ids, **GREEDY)
        padded = torch.cat([torch.full((1, 3), 258), ids], 1)
        mask = (padded != 258).long()
        assert torch.equal(both.generate(padded, attention_mask=mask, **GREEDY)[:, 3:], plain)
        static = both.generate(padded, attention_mask=mask, cache_implementation="static", **GREEDY)
        assert torch.equal(static[:, 3:], plain)
        assert torch.equal(both.generate(ids, cache_implementation="static", **GREEDY), plain)
        beams = both.generate(ids, num_beams=3, max_new_tokens=6)
        assert torch.equal(beams, both.generate(ids, num_beams=3, max_new_tokens=6, use_cache=False))


def test_one_model_alone_is_itself(models) -> None:
    with torch.no_grad():
        alone = EnsembleForCausalLM.from_models(models[:1])
        assert torch.equal(alone(prompt(6)).logits, models[0](prompt(6)).logits)


@torch.no_grad()
def test_schedules_move_weight_between_models(both) -> None:
    ids = prompt(6)
    mix = LogitMix("logits", (0.5, 0.5), schedule=Schedule("step", 0.0, 2.0, 2))
    with pytest.raises(LatentError, match="prompt ends"), both.using(mix):
        both(ids)
    with both.using(mix):
        out = both(ids, mix_start=2).logits
    first, second = (model(ids).logits[..., :264] for model in both.models)
    torch.testing.assert_close(out[:, :4], first[:, :4])
    torch.testing.assert_close(out[:, 4:], second[:, 4:])


def test_labels_and_refusals(both) -> None:
    ids = prompt(6)
    out = both(ids, labels=ids)
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(out.logits[0, :-1], ids[0, 1:]))
    with pytest.raises(LatentError, match="cannot be trained"):
        both.train()
    with pytest.raises(LatentError, match="inputs_embeds"):
        both(inputs_embeds=torch.zeros(1, 2, 32))
    with pytest.raises(LatentError, match="2 models and 1 weights"):
        EnsembleForCausalLM.from_models(list(both.models), weights=[0.5])
