"""A wrapper leaves no trace: the base alone is untouched, whatever happened before or happens beside it."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from latent_tiny import prompt, tiny_causal

from smelt.core.errors import LatentError
from smelt.latent import LatentMergedForCausalLM, Site

GREEDY = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}


@torch.no_grad()
def test_two_wrappers_and_the_bare_base_at_once() -> None:
    base = tiny_causal("llama", 1)
    ids = prompt(9)
    models = [
        base,
        LatentMergedForCausalLM.from_models(base, tiny_causal("llama", 2), [Site(2, "slerp", [0.6])]),
        LatentMergedForCausalLM.from_models(
            base, tiny_causal("llama", 3), [Site(3, "lerp", [0.4])], scope="generated"
        ),
    ]
    alone = [model.generate(ids, **GREEDY) for model in models]
    assert not torch.equal(alone[0], alone[1])
    start = threading.Barrier(3)

    def run(index: int) -> list[torch.Tensor]:
        start.wait()
        return [models[index].generate(ids, **GREEDY) for _ in range(6)]

    with ThreadPoolExecutor(3) as pool:
        for index, outs in enumerate(pool.map(run, range(3))):
            assert all(torch.equal(out, alone[index]) for out in outs)


@torch.no_grad()
def test_one_wrapper_with_other_settings_per_thread() -> None:
    merged = LatentMergedForCausalLM.from_models(
        tiny_causal("llama", 1), tiny_causal("llama", 2), [Site(2, "slerp", [0.5])]
    )
    ids, betas = prompt(9), (0.0, 0.3, 0.9)
    alone = [merged.generate(ids, beta=beta, **GREEDY) for beta in betas]
    with ThreadPoolExecutor(3) as pool:
        runs = list(
            pool.map(lambda beta: [merged.generate(ids, beta=beta, **GREEDY) for _ in range(4)], betas)
        )
    for expected, outs in zip(alone, runs, strict=True):
        assert all(torch.equal(out, expected) for out in outs)


@torch.no_grad()
def test_the_base_is_untouched_after_an_exception_and_after_the_wrapper_is_gone() -> None:
    base, donor, ids = tiny_causal("llama", 1), tiny_causal("llama", 2), prompt(9)
    expected = base(ids).logits
    merged = LatentMergedForCausalLM.from_models(base, donor, [Site(2, "slerp", [0.5])])
    broken = donor.model.layers[1].mlp.forward
    donor.model.layers[1].mlp.forward = lambda x: (_ for _ in ()).throw(KeyError("broken donor"))
    with pytest.raises(KeyError):
        merged(ids)
    donor.model.layers[1].mlp.forward = broken
    assert torch.equal(base(ids).logits, expected)
    assert not torch.equal(merged(ids).logits, expected)
    assert sum(len(layer._forward_pre_hooks) for layer in base.model.layers) == 4
    del merged
    gc.collect()
    assert sum(len(layer._forward_pre_hooks) + len(layer._forward_hooks) for layer in base.model.layers) == 0


@torch.no_grad()
def test_a_model_merged_with_itself_is_itself() -> None:
    """The donor's layers are the base's own modules here: running them must not mix again."""
    base, ids = tiny_causal("llama", 1), prompt(9)
    for sites in ([Site(2, "slerp", [0.5])], [Site(1, "lerp", [0.5]), Site("last", "lerp", [0.5])]):
        with pytest.warns(UserWarning, match="changes nothing"):
            merged = LatentMergedForCausalLM.from_models(base, base, sites)
        torch.testing.assert_close(merged(ids).logits, base(ids).logits, atol=1e-5, rtol=0)
    own = LatentMergedForCausalLM.from_models(base, [base, tiny_causal("llama", 2)])
    sites = [Site(1, "lerp", [0.0, 0.3]), Site(3, "task_vector", [0.5, 0.0])]
    twin = LatentMergedForCausalLM.from_models(
        tiny_causal("llama", 1), [tiny_causal("llama", 1), tiny_causal("llama", 2)]
    )
    with own.using(sites), twin.using(sites):
        assert torch.equal(own(ids).logits, twin(ids).logits)
        assert not torch.equal(twin(ids).logits, base(ids).logits)


@torch.no_grad()
def test_live_changes_and_their_end() -> None:
    merged = LatentMergedForCausalLM.from_models(
        tiny_causal("llama", 1), tiny_causal("llama", 2), [Site(2, "slerp", [0.5])]
    )
    ids = prompt(9)
    before = merged(ids).logits
    with merged.using([Site(3, "lerp", [0.5])]):
        inside = merged(ids).logits
        with merged.using(beta=0.9):
            assert not torch.equal(merged(ids).logits, inside)
        assert torch.equal(merged(ids).logits, inside)
    assert torch.equal(merged(ids).logits, before)
    merged.set_sites([Site(3, "lerp", [0.5])])
    assert torch.equal(merged(ids).logits, inside)
    with pytest.raises(LatentError), merged.using([Site(9)]):
        pass
    with pytest.raises(LatentError):
        merged.set_sites([Site(9)])
    assert torch.equal(merged(ids).logits, inside)


@torch.no_grad()
def test_no_gradient_and_moving_keeps_working() -> None:
    base, donor = tiny_causal("llama", 1), tiny_causal("llama", 2)
    merged = LatentMergedForCausalLM.from_models(base, donor, [Site(2, "slerp", [0.5])])
    with torch.enable_grad():
        assert not merged(prompt(5)).logits.requires_grad
    expected = merged(prompt(5)).logits
    merged.to(torch.bfloat16)
    low = merged(prompt(5)).logits
    assert low.dtype == torch.bfloat16 and merged.dtype == torch.bfloat16
    assert (low.float() - expected).abs().max() < 0.2
    assert merged.get_output_embeddings() is base.lm_head
    assert (
        merged.config.vocab_size == 264
        and merged.config.base_layers == 4
        and merged.config.num_hidden_layers == 8
    )
