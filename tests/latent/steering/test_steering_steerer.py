"""The steerer: what it adds and where, and the algebra that must hold."""

from __future__ import annotations

import copy

import latent_tiny as tiny
import pytest
import torch

from smelt.core.errors import LatentError
from smelt.latent.interventions import Session
from smelt.latent.mixers import ActivationSteerer
from smelt.latent.steering import SteeringVector


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_causal("llama", 0)


def delta(seed=0):
    return torch.randn(32, generator=torch.Generator().manual_seed(seed))


def logits(model, ids, **call):
    with torch.no_grad():
        return model(input_ids=ids, **call).logits


def by_hand(model, ids, layer, change):
    """The same forward with the state changed by a plain hook."""
    target = model.model.layers[layer] if layer < 4 else model.model.norm
    handle = target.register_forward_pre_hook(lambda module, args: (change(args[0]), *args[1:]))
    try:
        return logits(model, ids)
    finally:
        handle.remove()


@pytest.mark.parametrize("layer", [0, 2, 4])
def test_it_adds_alpha_times_delta_before_the_layer(model, layer):
    ids = tiny.prompt(6)
    with ActivationSteerer(model, {layer: delta()}, alpha=0.3):
        found = logits(model, ids)
    assert torch.allclose(found, by_hand(model, ids, layer, lambda h: h + 0.3 * delta()), atol=1e-6)


def test_several_layers_add_up_in_depth(model):
    ids = tiny.prompt(6)
    with ActivationSteerer(model, {1: delta(1), 3: delta(3)}, alpha=0.5):
        together = logits(model, ids)
    with (
        ActivationSteerer(model, {1: delta(1)}, alpha=0.5),
        ActivationSteerer(model, {3: delta(3)}, alpha=0.5),
    ):
        assert torch.equal(logits(model, ids), together)


@pytest.mark.parametrize("scope", [True, False])
def test_alpha_zero_and_a_zero_vector_are_bit_for_bit_the_model(model, scope):
    ids = tiny.prompt(6)
    plain = logits(model, ids)
    v = SteeringVector({2: delta()}, 4)
    with ActivationSteerer(model, v, alpha=0.0, apply_to_all_tokens=scope):
        assert torch.equal(logits(model, ids, use_cache=True), plain)
    with ActivationSteerer(model, v - v, alpha=1.0, apply_to_all_tokens=scope):
        assert torch.equal(logits(model, ids, use_cache=True), plain)


def test_alpha_and_minus_alpha_cancel(model):
    ids = tiny.prompt(6)
    plain = logits(model, ids)
    with ActivationSteerer(model, {2: delta()}, 0.7), ActivationSteerer(model, {2: delta()}, -0.7):
        assert torch.allclose(logits(model, ids), plain, atol=1e-5)
    with ActivationSteerer(model, {2: delta()}, 0.7):
        assert not torch.allclose(logits(model, ids), plain, atol=1e-2)


def test_minus_the_vector_is_minus_alpha(model):
    ids = tiny.prompt(6)
    v = SteeringVector({2: delta()}, 4)
    with ActivationSteerer(model, -v, 0.4):
        turned = logits(model, ids)
    with ActivationSteerer(model, v, -0.4):
        assert torch.equal(logits(model, ids), turned)


def test_generated_tokens_only_counts_from_the_end_of_the_prompt(model):
    """Cached generation, uncached generation and scoring the finished text agree."""
    ids = tiny.prompt(7)
    mask = torch.ones_like(ids)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    with ActivationSteerer(model, {2: delta()}, 1.0, apply_to_all_tokens=False):
        cached = model.generate(ids, attention_mask=mask, **settings)
        uncached = model.generate(ids, attention_mask=mask, use_cache=False, **settings)
        scored = logits(model, cached.sequences[:, :-1], use_cache=False, mix_start=6)[:, 6:]
        with pytest.raises(LatentError, match="where does the prompt end"):
            logits(model, ids)
    steps = torch.stack(cached.logits, 1)
    assert torch.equal(cached.sequences, uncached.sequences)
    assert torch.allclose(steps, scored, atol=1e-4)

    def late(h):
        h = h.clone()
        h[:, 6:] += delta()
        return h

    assert torch.allclose(scored, by_hand(model, cached.sequences[:, :-1], 2, late)[:, 6:], atol=1e-4)


def test_token_wise_deltas_go_to_the_first_real_tokens(model):
    """Activation addition, in a left-padded batch too."""
    wide = torch.randn(3, 32, generator=torch.Generator().manual_seed(4))
    long, short = tiny.prompt(8, seed=1), tiny.prompt(5, seed=2)
    ids = torch.cat([long, torch.nn.functional.pad(short, (3, 0), value=258)])

    def first(h):
        h = h.clone()
        h[:, :3] += wide
        return h

    settings = {
        "max_new_tokens": 5,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    want = by_hand(model, long, 1, first)
    with ActivationSteerer(model, {1: wide}, 1.0):
        assert torch.allclose(logits(model, long), want, atol=1e-5)
        both = model.generate(ids, attention_mask=(ids != 258).long(), eos_token_id=None, **settings)
        alone = model.generate(short, attention_mask=torch.ones_like(short), eos_token_id=None, **settings)
    assert torch.allclose(torch.stack(both.logits)[:, 1], torch.stack(alone.logits)[:, 0], atol=1e-4)


def test_keep_norm_gives_states_their_length_back(model):
    ids = tiny.prompt(6)

    def turn(h):
        moved = h + 2.0 * delta()
        return moved * h.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True)

    want = by_hand(model, ids, 2, turn)
    with ActivationSteerer(model, {2: delta()}, 2.0, keep_norm=True):
        assert torch.allclose(logits(model, ids), want, atol=1e-5)


def test_alpha_may_change_while_attached(model):
    ids = tiny.prompt(6)
    with ActivationSteerer(model, {2: delta()}, 0.1) as steerer:
        logits(model, ids)
        steerer.alpha = 0.9
        changed = logits(model, ids)
    with ActivationSteerer(model, {2: delta()}, 0.9):
        assert torch.equal(logits(model, ids), changed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_add_in_float32(dtype):
    """A delta far below one bfloat16 step of the state is not lost before the sum is rounded."""
    model = tiny.tiny_causal("llama", 0).to(dtype)
    ids = tiny.prompt(6)
    with ActivationSteerer(model, {2: delta()}, 0.5):
        half = logits(model, ids)
    with ActivationSteerer(model.float(), {2: delta()}, 0.5):
        full = logits(model, ids)
    assert half.dtype == dtype
    assert (half.float() - full).norm() < 0.05 * full.norm()


@pytest.mark.parametrize(
    ("deltas", "said"),
    [
        ({7: torch.ones(32)}, "no such layer: 7"),
        ({-1: torch.ones(32)}, r"layers \[-1\]"),
        ({2: torch.ones(31)}, "hidden size 31"),
        ({}, "without layers"),
        ({2: torch.full((32,), float("nan"))}, "NaN or Inf"),
        (SteeringVector({2: torch.ones(32)}, 28), "layers 28"),
    ],
)
def test_deltas_that_do_not_fit_are_errors(model, deltas, said):
    """Trap 5: the reference dropped bad layers without a word."""
    with pytest.raises(LatentError, match=said):
        ActivationSteerer(model, deltas)
    assert Session.active(model) is None


def test_removing_leaves_the_model_as_it_was(model):
    ids = tiny.prompt(6)
    plain = logits(model, ids)
    steerer = ActivationSteerer(model, {2: delta()}, 1.0)
    assert not torch.equal(logits(model, ids), plain)
    steerer.remove()
    assert torch.equal(logits(model, ids), plain)
    with pytest.raises(ZeroDivisionError), ActivationSteerer(model, {2: delta()}, 1.0):
        raise ZeroDivisionError
    assert torch.equal(logits(model, ids), plain)
    assert torch.equal(logits(copy.deepcopy(model), ids), plain)


@pytest.mark.parametrize("arch", ["gpt2", "gpt_neox", "qwen2", "gemma2", "mixtral", "opt"])
def test_other_architectures(arch):
    model = tiny.tiny_causal(arch, 0)
    ids = tiny.prompt(6)
    plain = logits(model, ids)
    with ActivationSteerer(model, {2: delta()}, 1.0):
        moved = logits(model, ids)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
    assert (moved - plain).abs().max() > 1e-3
    assert out.shape[1] > 6
    assert torch.equal(logits(model, ids), plain)
