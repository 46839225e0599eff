"""The reference's traps, one by one: each test fails on its behaviour."""

from __future__ import annotations

import contextlib
import copy
import gc
import inspect
import pickle
import threading
import warnings

import latent_tiny as tiny
import pytest
import torch

from smelt.core.errors import LatentError
from smelt.latent import LatentMergedForCausalLM, Site
from smelt.latent.interventions import Session
from smelt.latent.mixers import ActivationSteerer, LayerLatentMixer, LayerLatentRegMeanMixer
from smelt.latent.wrapping import configured, wrap


@pytest.fixture(scope="module")
def base():
    return tiny.tiny_causal("llama", 0)


@pytest.fixture(scope="module")
def donor():
    return tiny.tiny_causal("llama", 1)


@pytest.fixture(autouse=True)
def nothing_left_behind(base, donor):
    yield
    assert Session.active(base) is None
    assert Session.active(donor) is None
    assert "forward" not in base.__dict__
    assert "generate" not in base.__dict__
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in base.model.layers)


def logits(model, ids, **call):
    with torch.no_grad():
        return model(input_ids=ids, **call).logits


def greedy(model, ids, tokens=8, **call):
    mask = call.pop("attention_mask", torch.ones_like(ids))
    return model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, **call)


def generated_logits(model, ids, tokens=8, **call):
    out = greedy(
        model, ids, tokens, output_logits=True, return_dict_in_generate=True, eos_token_id=None, **call
    )
    return out.sequences, torch.stack(out.logits, dim=1)


# ---------------------------------------------------------------- trap 2: scope by absolute position


@pytest.mark.parametrize("mode", ["lerp", "slerp"])
@pytest.mark.parametrize("last_token_only", [True, False])
def test_scoring_the_finished_text_gives_the_logits_that_generated_it(base, donor, mode, last_token_only):
    ids = tiny.prompt(7)
    with LayerLatentMixer(base, donor, 2, 0.6, last_token_only, mode):
        text, step_by_step = generated_logits(base, ids)
        at_once = logits(base, text[:, :-1], use_cache=False, mix_start=6)[:, 6:]
    assert torch.allclose(step_by_step, at_once, atol=1e-4)


def test_chunked_prefill_prompt_lookup_and_beams_are_the_same_model(base, donor):
    ids = tiny.prompt(9)
    with LayerLatentMixer(base, donor, 2, 0.5):
        plain = greedy(base, ids)
        assert torch.equal(plain, greedy(base, ids, prefill_chunk_size=4))
        assert torch.equal(plain, greedy(base, ids, prompt_lookup_num_tokens=3))
        assert torch.equal(greedy(base, ids, num_beams=3), greedy(base, ids, num_beams=3, use_cache=False))


def test_a_call_that_could_mean_two_things_is_refused(base, donor):
    ids = tiny.prompt(6)
    with LayerLatentMixer(base, donor, 2), pytest.raises(LatentError, match="where does the prompt end"):
        base(input_ids=ids)
    with LayerLatentMixer(base, donor, 2, last_token_only=False):
        assert base(input_ids=ids).logits.shape == (1, 6, tiny.VOCAB)


def test_rows_with_prompts_of_other_lengths_are_mixed_each_from_its_own_end(base, donor):
    """Right-padded prompts in the caller's own loop."""
    long, short = tiny.prompt(6, seed=1), tiny.prompt(4, seed=2)
    ids = torch.cat([long, torch.nn.functional.pad(short, (0, 2), value=258)])
    mask = (ids != 258).long()
    with LayerLatentMixer(base, donor, 2, 0.7):
        both = logits(base, ids, attention_mask=mask, use_cache=True)
        alone = logits(base, short, use_cache=True)
    assert torch.allclose(both[1, 3], alone[0, 3], atol=1e-5)


# ---------------------------------------------------------------- trap 3: no stale donor state


def test_the_donor_always_sees_the_prompt_at_hand(base, donor):
    """In the reference, calling the base mixed in the state of whatever the donor had seen last."""
    first, second = tiny.prompt(6, seed=3), tiny.prompt(6, seed=4)
    with LayerLatentMixer(base, donor, 3, 1.0, last_token_only=False):
        logits(donor, first)
        after_other_prompt = logits(base, second)
        logits(donor, second)
        after_same_prompt = logits(base, second)
    assert torch.equal(after_other_prompt, after_same_prompt)


def test_beta_one_is_the_stitched_model(base, donor):
    ids = tiny.prompt(6)
    stitched = copy.deepcopy(base)
    stitched.model.embed_tokens = donor.model.embed_tokens
    for index in range(3):
        stitched.model.layers[index] = donor.model.layers[index]
    with LayerLatentMixer(base, donor, 3, 1.0, last_token_only=False):
        assert torch.allclose(logits(base, ids), logits(stitched, ids), atol=1e-5)


def test_beta_zero_is_bit_for_bit_the_base(base, donor):
    ids = tiny.prompt(6)
    plain = logits(base, ids)
    with LayerLatentMixer(base, donor, 3, 0.0, last_token_only=False):
        assert torch.equal(logits(base, ids), plain)


def test_a_cache_from_before_the_mixer_is_refused(base, donor):
    ids = tiny.prompt(6)
    past = base(input_ids=ids, use_cache=True).past_key_values
    with LayerLatentMixer(base, donor, 2), pytest.raises(LatentError, match="donors have not seen"):
        base(input_ids=ids[:, :1], past_key_values=past)


@pytest.mark.parametrize("with_config", [True, False])
def test_an_empty_cache_made_for_the_base_gets_room_for_the_donor(base, donor, with_config):
    from transformers import DynamicCache

    ids = tiny.prompt(6)
    cache = DynamicCache(config=base.config) if with_config else DynamicCache()
    with LayerLatentMixer(base, donor, 2):
        given = base(input_ids=ids, past_key_values=cache, use_cache=True)
        made = base(input_ids=ids, use_cache=True)
        assert torch.equal(given.logits, made.logits)
        step = {"input_ids": ids[:, :1], "use_cache": True}
        again = [base(past_key_values=out.past_key_values, **step).logits for out in (given, made)]
    assert torch.equal(*again)


# ---------------------------------------------------------------- trap 4: nothing leaks


def test_an_exception_inside_the_block_leaves_the_base_as_it_was(base, donor):
    ids = tiny.prompt(5)
    plain = logits(base, ids)
    with pytest.raises(ZeroDivisionError), LayerLatentMixer(base, donor, 2):
        raise ZeroDivisionError
    assert torch.equal(logits(base, ids), plain)


def test_an_exception_inside_a_forward_leaves_the_base_as_it_was(base, donor):
    ids = tiny.prompt(5)
    plain = logits(base, ids)

    def burst(module, args):
        raise ZeroDivisionError

    handle = base.model.layers[3].register_forward_pre_hook(burst)
    with pytest.raises(ZeroDivisionError), LayerLatentMixer(base, donor, 2, last_token_only=False):
        logits(base, ids)
    handle.remove()
    assert torch.equal(logits(base, ids), plain)


def test_remove_ends_it_twice_is_harmless_and_it_can_be_entered_again(base, donor):
    ids = tiny.prompt(5)
    plain = logits(base, ids)
    mixer = LayerLatentMixer(base, donor, 2, last_token_only=False)
    mixed = logits(base, ids)
    mixer.remove()
    mixer.remove()
    assert not mixer.active
    assert torch.equal(logits(base, ids), plain)
    with mixer:
        assert torch.equal(logits(base, ids), mixed)
    assert not torch.equal(mixed, plain)


def test_a_mixer_lost_in_a_failing_function_is_detached_with_a_warning(base, donor):
    ids = tiny.prompt(5)
    plain = logits(base, ids)

    def careless():
        mixer = LayerLatentMixer(base, donor, 2, last_token_only=False)
        assert mixer.active
        raise ZeroDivisionError

    with pytest.warns(UserWarning, match=r"LayerLatentMixer created at .*test_reference_traps.*dropped"):
        with contextlib.suppress(ZeroDivisionError):
            careless()
        gc.collect()
    assert torch.equal(logits(base, ids), plain)


def test_a_refused_mixer_attaches_nothing(base, donor):
    other = tiny.tiny_causal("llama", 2, hidden_size=64, head_dim=16)
    with pytest.raises(LatentError, match="hidden size"):
        LayerLatentMixer(base, other, 2)
    with pytest.raises(LatentError, match="two sites at layer 2"), LayerLatentMixer(base, donor, 2):
        LayerLatentMixer(base, donor, 2)


def test_a_model_with_a_mixer_attached_is_not_copied_by_accident(base, donor):
    with LayerLatentMixer(base, donor, 2):
        with pytest.raises(LatentError, match="has LayerLatentMixer attached"):
            copy.deepcopy(base)
        with pytest.raises((LatentError, AttributeError)):
            pickle.dumps(base)
    ids = tiny.prompt(5)
    twin = copy.deepcopy(base)
    assert torch.equal(logits(twin, ids), logits(base, ids))
    with LayerLatentMixer(twin, donor, 2, last_token_only=False):
        assert not torch.equal(logits(twin, ids), logits(base, ids))
    assert torch.equal(logits(pickle.loads(pickle.dumps(base)), ids), logits(base, ids))


# ---------------------------------------------------------------- trap 5: layers out of range


@pytest.mark.parametrize("layer", [-3, -1, 5, 99])
def test_layers_out_of_range_are_errors(base, donor, layer):
    with pytest.raises(LatentError, match=f"no such layer: {layer}"):
        LayerLatentMixer(base, donor, layer)
    with pytest.raises(LatentError, match=f"no such layer: {layer}"):
        LayerLatentRegMeanMixer(base, [donor], layer)
    with pytest.raises(LatentError, match=rf"layer.*{layer}"):
        ActivationSteerer(base, {1: torch.zeros(32), layer: torch.zeros(32)})


@pytest.mark.parametrize("layer", [1.5, "2", True, None])
def test_a_layer_is_a_whole_number(base, donor, layer):
    with pytest.raises(LatentError, match="whole number"):
        LayerLatentMixer(base, donor, layer)


def test_the_place_before_the_final_norm_can_be_addressed(base, donor):
    ids = tiny.prompt(6)
    with LayerLatentMixer(base, donor, 4, 1.0, last_token_only=False), torch.no_grad():
        mixed = logits(base, ids)
        trunk = donor.model.norm.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
        seen = []
        logits(donor, ids)
        trunk.remove()
        assert torch.allclose(mixed, base.lm_head(base.model.norm(seen[0])), atol=1e-5)


# ---------------------------------------------------------------- trap 6: batches and padding


@pytest.mark.parametrize("last_token_only", [True, False])
def test_a_left_padded_row_is_the_same_alone(base, donor, last_token_only):
    long, short = tiny.prompt(9, seed=5), tiny.prompt(5, seed=6)
    ids = torch.cat([long, torch.nn.functional.pad(short, (4, 0), value=258)])
    with LayerLatentMixer(base, donor, 2, 0.5, last_token_only, "slerp"):
        _, both = generated_logits(base, ids, attention_mask=(ids != 258).long())
        _, alone = generated_logits(base, short)
    assert torch.allclose(both[1], alone[0], atol=1e-4)


# ---------------------------------------------------------------- trap 7: precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_mix_in_float32(dtype):
    """The reference's arccos in half precision saw no angle at all between near states."""
    base, donor = (tiny.tiny_causal("llama", seed).to(dtype) for seed in (0, 1))
    ids = tiny.prompt(6)
    with LayerLatentMixer(base, donor, 2, 0.5, False, "slerp"):
        half = logits(base, ids)
    with LayerLatentMixer(base.float(), donor.float(), 2, 0.5, False, "slerp"):
        full = logits(base, ids)
    assert half.isfinite().all()
    assert half.dtype == dtype
    assert (half.float() - full).norm() < 0.05 * full.norm()


# ---------------------------------------------------------------- trap 9: states passed by keyword


@pytest.mark.parametrize("last_token_only", [True, False])
def test_layers_called_with_keywords_are_mixed_and_steered_all_the_same(base, donor, last_token_only):
    ids = tiny.prompt(6)
    delta = {2: torch.randn(32, generator=torch.Generator().manual_seed(0))}

    def run():
        with LayerLatentMixer(base, donor, 2, 0.5, last_token_only):
            mixed = generated_logits(base, ids)[1]
        with ActivationSteerer(base, delta, 1.0, apply_to_all_tokens=not last_token_only):
            return mixed, generated_logits(base, ids)[1]

    usual = run()
    originals = [layer.forward for layer in base.model.layers]

    class ByKeyword(torch.nn.Module):
        """Calls the layer with hidden_states=..., as some families do."""

        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, hidden_states, **kwargs):
            return self.layer(hidden_states=hidden_states, **kwargs)

    assert all(inspect.signature(forward).parameters.keys() >= {"hidden_states"} for forward in originals)
    twin = copy.deepcopy(base)
    mixer = LayerLatentMixer(twin, donor, 2, 0.5, last_token_only)
    layer = twin.model.layers[2]
    try:
        state = torch.randn(1, 3, 32)
        position = twin.model.rotary_emb(state, torch.arange(3)[None])
        with torch.no_grad():
            by_keyword = layer(hidden_states=state, position_embeddings=position)
            by_position = layer(state, position_embeddings=position)
        assert torch.equal(*(torch.as_tensor(out[0]) for out in (by_keyword, by_position)))
    finally:
        mixer.remove()
    assert all(torch.equal(a, b) for a, b in zip(usual, run(), strict=True))


# ---------------------------------------------------------------- several at once, threads, live changes


def test_two_mixers_with_two_donors_act_together(base, donor):
    third = tiny.tiny_causal("llama", 7)
    ids = tiny.prompt(6)
    with LayerLatentMixer(base, donor, 1, 0.5, False), LayerLatentMixer(base, third, 3, 0.4, False, "slerp"):
        together = logits(base, ids)
    sites = [Site(1, "lerp", (0.5, 0.0)), Site(3, "slerp", (0.0, 0.4))]
    merged = LatentMergedForCausalLM.from_models(base, [donor, third], sites)
    assert torch.allclose(together, merged(ids).logits, atol=1e-6)
    with LayerLatentMixer(base, donor, 1, 0.5, False):
        one = logits(base, ids)
    assert (one - together).abs().max() > 1e-3


def test_mixers_that_disagree_on_scope_are_refused(base, donor):
    with (
        LayerLatentMixer(base, donor, 1, last_token_only=False),
        pytest.raises(LatentError, match="differ in last_token_only"),
    ):
        LayerLatentMixer(base, donor, 3, last_token_only=True)


def test_ratio_and_mode_may_change_while_attached(base, donor):
    ids = tiny.prompt(6)
    with LayerLatentMixer(base, donor, 2, 0.2, False) as mixer:
        first = logits(base, ids)
        mixer.beta, mixer.mix_mode = 0.9, "slerp"
        changed = logits(base, ids)
    with LayerLatentMixer(base, donor, 2, 0.9, False, "slerp"):
        assert torch.equal(changed, logits(base, ids))
    assert not torch.equal(first, changed)


def test_threads_share_an_attached_mixer(base, donor):
    prompts = [tiny.prompt(6, seed=seed) for seed in range(4)]
    with LayerLatentMixer(base, donor, 2, 0.5):
        alone = [greedy(base, ids) for ids in prompts]
        found = [None] * 4

        def work(index):
            found[index] = greedy(base, prompts[index])

        threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))


def test_a_donor_that_is_itself_steered_is_refused(base, donor):
    with (
        ActivationSteerer(donor, {1: torch.ones(32)}),
        pytest.raises(LatentError, match="the donor has ActivationSteerer attached"),
    ):
        LayerLatentMixer(base, donor, 2)


def test_a_view_of_a_wrapper_keeps_its_hooks_alive(base, donor):
    ids = tiny.prompt(6)
    sites = [Site(2, "lerp", (1.0,))]
    view = configured(wrap(base, [donor]), base.generation_config)
    with view.using(sites):
        mixed = view(ids).logits
    with LayerLatentMixer(base, donor, 2, 1.0, last_token_only=False):
        assert torch.equal(mixed, logits(base, ids))
    del view


def test_an_unknown_mode_is_an_error_with_advice(base, donor):
    """In the reference every unknown mode silently meant lerp."""
    with pytest.raises(LatentError, match="did you mean 'slerp'"):
        LayerLatentMixer(base, donor, 2, mix_mode="slrp")


def test_signatures_of_the_base_stay_visible(base, donor):
    before = inspect.signature(base.forward)
    with LayerLatentMixer(base, donor, 2):
        assert inspect.signature(base.forward) == before


def test_no_warning_when_all_is_well(base, donor):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with LayerLatentMixer(base, donor, 2):
            greedy(base, tiny.prompt(4), 2)
