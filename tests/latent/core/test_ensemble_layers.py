"""Ensembles of models with mixed sliding and full layers keep a cache of the right kinds."""

from __future__ import annotations

import torch
from latent_tiny import tiny_causal

from smelt.latent import EnsembleForCausalLM


def test_a_cached_ensemble_of_sliding_models_equals_the_uncached_one() -> None:
    options = {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 4,
        "use_sliding_window": True,
        "num_hidden_layers": 4,
    }
    models = [tiny_causal("qwen2", seed, **options) for seed in (0, 1)]
    model = EnsembleForCausalLM.from_models(models)
    ids = torch.arange(3, 15)[None]
    whole = model(ids).logits
    cache, steps = None, []
    for position in range(ids.shape[1]):
        out = model(ids[:, position : position + 1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.logits)
    assert torch.allclose(torch.cat(steps, 1), whole, atol=1e-4)
