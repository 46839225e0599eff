"""The text functions: new text only, batches, seeds, stop tokens, schedules, one way to decode for all."""

from __future__ import annotations

import copy

import latent_tiny as tiny
import pytest
import torch

from smelt.core.errors import LatentError
from smelt.latent.answering import stop_tokens
from smelt.latent.interventions import Session
from smelt.latent.mixers import ActivationSteerer, LayerLatentMixer
from smelt.latent.reference import (
    chat_generate,
    delta_generate,
    ensemble_generate,
    latent_mix_generate,
    latent_regmean_generate,
)
from smelt.latent.steering import SteeringVector

CHAT = [{"role": "user", "content": "Say something."}]
OTHER = [{"role": "system", "content": "Short."}, {"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def base():
    return tiny.tiny_causal("qwen2", 0)


@pytest.fixture(scope="module")
def donor():
    return tiny.tiny_causal("qwen2", 1)


@pytest.fixture(scope="module")
def tok():
    return tiny.byte_tokenizer()


@pytest.fixture(scope="module")
def functions(base, donor, tok):
    """Every function with its own settings bound, called as f(messages, **decoding)."""
    delta = {2: torch.randn(32, generator=torch.Generator().manual_seed(0))}
    return {
        "chat": lambda m, **k: chat_generate(base, tok, m, **k),
        "mix": lambda m, **k: latent_mix_generate(base, donor, tok, m, mix_layer=2, **k),
        "regmean": lambda m, **k: latent_regmean_generate(base, donor, tok, m, mix_layer=2, **k),
        "delta": lambda m, **k: delta_generate(base, tok, delta, m, alpha=1.0, **k),
        "ensemble": lambda m, **k: ensemble_generate(base, donor, tok, m, **k),
    }


NAMES = ("chat", "mix", "regmean", "delta", "ensemble")


@pytest.mark.parametrize("name", NAMES)
def test_only_the_new_text_comes_back_unless_asked_otherwise(functions, tok, name):
    new = functions[name](CHAT, max_new_tokens=12, seed=3)
    whole = functions[name](CHAT, max_new_tokens=12, seed=3, include_prompt=True)
    prompt = tok.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert len(new) > 0
    assert whole == prompt + new


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_gives_what_each_prompt_gives_alone(functions, name):
    """Prompts of other lengths, padded, sampled: row r has seed + r."""
    together = functions[name]([CHAT, OTHER, "plain text"], max_new_tokens=10, seed=5)
    alone = [
        functions[name](prompt, max_new_tokens=10, seed=5 + row)
        for row, prompt in enumerate([CHAT, OTHER, "plain text"])
    ]
    assert together == alone
    assert len(set(together)) == 3


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides_and_the_global_state_is_left_alone(functions, name):
    before = torch.get_rng_state()
    first, again, other = (functions[name](CHAT, max_new_tokens=10, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", NAMES)
def test_temperature_zero_is_greedy(functions, name):
    runs = {functions[name](CHAT, max_new_tokens=8, temperature=0.0, top_p=0.3) for _ in range(3)}
    assert runs == {functions[name](CHAT, max_new_tokens=8, temperature=0.7, top_p=0.0)}


def test_beta_zero_says_what_the_base_says(base, donor, tok):
    shared = {"max_new_tokens": 12, "seed": 9, "temperature": 0.8}
    plain = chat_generate(base, tok, CHAT, **shared)
    assert latent_mix_generate(base, donor, tok, CHAT, 2, 0.0, **shared) == plain
    assert ensemble_generate(base, donor, tok, CHAT, 0.0, **shared) == plain
    assert delta_generate(base, tok, {1: torch.ones(32)}, CHAT, alpha=0.0, **shared) == plain


def test_beta_one_of_an_ensemble_says_what_the_donor_says(base, donor, tok):
    shared = {"max_new_tokens": 12, "seed": 9}
    assert ensemble_generate(base, donor, tok, CHAT, 1.0, **shared) == chat_generate(
        donor, tok, CHAT, **shared
    )


def test_the_functions_say_what_an_attached_mixer_says(base, donor, tok):
    text = latent_mix_generate(
        base, donor, tok, CHAT, 3, 0.7, "lerp", max_new_tokens=10, temperature=0, eos_token_id=[]
    )
    ids = tok.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    with LayerLatentMixer(base, donor, 3, 0.7):
        out = base.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, eos_token_id=None
        )
    assert tok.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == text


@pytest.mark.parametrize("late", [True, False])
def test_what_is_attached_acts_in_chat_generate(base, donor, tok, late):
    shared = {"max_new_tokens": 10, "seed": 2}
    delta = {3: torch.randn(32, generator=torch.Generator().manual_seed(3))}
    with LayerLatentMixer(base, donor, 2, 0.6, last_token_only=late, mix_mode="slerp"):
        mixed = chat_generate(base, tok, [CHAT, OTHER], **shared)
        with ActivationSteerer(base, delta, 2.0, apply_to_all_tokens=not late):
            both = chat_generate(base, tok, [CHAT, OTHER], **shared)
    assert mixed == latent_mix_generate(
        base, donor, tok, [CHAT, OTHER], 2, 0.6, last_token_only=late, **shared
    )
    with ActivationSteerer(base, delta, 2.0, apply_to_all_tokens=not late):
        steered = chat_generate(base, tok, [CHAT, OTHER], **shared)
    assert steered == delta_generate(base, tok, delta, [CHAT, OTHER], 2.0, not late, **shared)
    assert len({*mixed, *both, *steered}) == 6


@pytest.mark.parametrize("name", ["mix", "regmean", "delta", "ensemble"])
def test_functions_that_blend_refuse_models_with_something_attached(functions, base, name):
    with (
        ActivationSteerer(base, {1: torch.ones(32)}),
        pytest.raises(LatentError, match=r"ActivationSteerer attached.*chat_generate"),
    ):
        functions[name](CHAT, max_new_tokens=2)


def test_mode_and_mix_mode_are_one_setting(base, donor, tok):
    def run(**mode):
        return latent_mix_generate(base, donor, tok, CHAT, 3, 0.5, max_new_tokens=12, temperature=0, **mode)

    assert run(mode="slerp") == run(mix_mode="slerp") == run()
    assert run(mode="lerp") == run(mix_mode="lerp", mode="lerp") != run()
    with pytest.raises(LatentError, match="they mean the same"):
        run(mode="lerp", mix_mode="slerp")
    with pytest.raises(LatentError, match="did you mean 'slerp'"):
        run(mode="sleep")


def test_regmean_takes_one_donor_or_several_layers_and_the_ratio_by_either_name(base, donor, tok):
    def run(models=donor, **more):
        return latent_regmean_generate(base, models, tok, CHAT, max_new_tokens=12, temperature=0, **more)

    assert run(mix_layers=[2, 3], alpha=0.5) == run([donor], mix_layer=[2, 3], lambda_reg=1.0)
    assert run(mix_layer=2, alpha=0.8) == run(mix_layer=2, lambda_reg=0.25)
    lerp = latent_mix_generate(base, donor, tok, CHAT, 2, 0.8, "lerp", max_new_tokens=12, temperature=0)
    assert run(mix_layer=2, lambda_reg=0.25) == lerp


def test_regmean_weighs_its_donors(base, donor, tok):
    third = tiny.tiny_causal("qwen2", 2)

    def run(weights):
        return latent_regmean_generate(
            base, [donor, third], tok, CHAT, 2, 0.5, weights, max_new_tokens=12, temperature=0
        )

    only = latent_regmean_generate(base, third, tok, CHAT, 2, 0.5, max_new_tokens=12, temperature=0)
    assert run([0.0, 3.0]) == only
    assert run([1.0, 1.0]) == run(None)
    with pytest.raises(LatentError, match="3 ft_weights for 2 models"):
        run([1, 2, 3])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda b, d, t: latent_regmean_generate(b, d, t, CHAT, 1, 0.5, alpha=0.5), "alpha is 1 /"),
        (lambda b, d, t: latent_regmean_generate(b, d, t, CHAT, 1, alpha=0.0), "alpha=0.0"),
        (lambda b, d, t: latent_regmean_generate(b, [], t, CHAT, 1), "no donor model"),
        (lambda b, d, t: latent_regmean_generate(b, d, t, CHAT), "no such layer: 20"),
        (lambda b, d, t: latent_mix_generate(b, d, t, CHAT), "no such layer: 20"),
        (lambda b, d, t: latent_mix_generate(b, d, t, CHAT, []), "no layer to mix at"),
        (lambda b, d, t: latent_mix_generate(b, d, t, CHAT, 1, max_new_tokens=0), "max_new_tokens=0"),
        (lambda b, d, t: latent_mix_generate(b, d, t, CHAT, 1, num_beams=2), "temperature=0"),
        (lambda b, d, t: latent_mix_generate(b, d, t, CHAT, 1, sites=[]), "sites cannot be given"),
        (lambda b, d, t: latent_mix_generate(b, d, t, [{"text": "x"}], 1), "'role'"),
        (lambda b, d, t: latent_mix_generate(b, d, t, [], 1), "not a prompt"),
        (lambda b, d, t: latent_mix_generate(b, d, t, "", 1), "no tokens"),
        (lambda b, d, t: ensemble_generate(b, d, t, CHAT, float("nan")), "beta is nan"),
        (lambda b, d, t: ensemble_generate(b, d, t, CHAT, op="mean"), "unknown op"),
        (lambda b, d, t: delta_generate(b, t, {9: torch.ones(32)}, CHAT), "no such layer: 9"),
        (lambda b, d, t: delta_generate(b, t, {1: torch.ones(33)}, CHAT), "hidden size 33"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_and_leave_nothing_behind(base, donor, tok, call, said):
    with pytest.raises(LatentError, match=said):
        call(base, donor, tok)
    assert Session.active(base) is None


def test_beams_work_when_nothing_is_sampled(base, donor, tok):
    text = latent_mix_generate(base, donor, tok, CHAT, 2, max_new_tokens=6, temperature=0, num_beams=3)
    assert isinstance(text, str)
    several = latent_mix_generate(
        base, donor, tok, CHAT, 2, max_new_tokens=6, temperature=0, num_beams=3, num_return_sequences=2
    )
    assert several[0] == text
    assert len(several) == 2


def test_every_stop_token_stops(base, donor, tok):
    """Trap 10: the reference's loops knew one EOS, the checkpoint may list several."""
    free = latent_mix_generate(base, donor, tok, CHAT, 2, max_new_tokens=20, temperature=0, eos_token_id=[])
    ids = tok(free)["input_ids"]
    assert stop_tokens(base, tok) == [257]
    marked = copy.copy(base)
    marked.generation_config = copy.deepcopy(base.generation_config)
    marked.generation_config.eos_token_id = [ids[3], 5]
    short = latent_mix_generate(marked, donor, tok, CHAT, 2, max_new_tokens=20, temperature=0)
    stop = ids.index(ids[3])
    assert tok(short)["input_ids"] == ids[: stop + 1]
    assert (
        latent_mix_generate(base, donor, tok, CHAT, 2, max_new_tokens=20, temperature=0, eos_token_id=ids[3])
        == short
    )


def test_the_checkpoints_own_sampling_settings_do_not_sneak_in(base, donor, tok):
    """Trap 10: top_k, repetition penalties and forbidden words in generation_config.json skew comparisons."""
    plain = latent_mix_generate(base, donor, tok, CHAT, 2, max_new_tokens=15, seed=1)
    loaded = copy.copy(base)
    loaded.generation_config = copy.deepcopy(base.generation_config)
    first = tok(plain)["input_ids"][0]
    loaded.generation_config.update(top_k=1, do_sample=True, temperature=0.1, repetition_penalty=5.0)
    loaded.generation_config.update(bad_words_ids=[[first]], suppress_tokens=[first])
    assert latent_mix_generate(loaded, donor, tok, CHAT, 2, max_new_tokens=15, seed=1) == plain
    assert (
        latent_mix_generate(base, donor, tok, CHAT, 2, max_new_tokens=15, seed=1, suppress_tokens=[first])
        != plain
    )


def test_an_ensemble_may_change_its_ratio_by_step(base, donor, tok):
    shared = {"max_new_tokens": 12, "temperature": 0, "eos_token_id": []}
    asked = []

    def ramp(step, most):
        asked.append((step, most))
        return 0.0 if step < 5 else 1.0

    text = ensemble_generate(base, donor, tok, CHAT, beta_schedule=ramp, **shared)
    assert ensemble_generate(base, donor, tok, CHAT, ramp, **shared) == text
    assert asked[:12] == [(step, 12) for step in range(12)]
    ids = tok.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    for step in range(12):
        model = base if step < 5 else donor
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert text == tok.decode(ids[0, -12:], skip_special_tokens=True)


def test_a_logit_ensemble_is_the_published_average(base, donor, tok):
    ids = tok.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    text = ensemble_generate(base, donor, tok, CHAT, 0.3, max_new_tokens=8, temperature=0, eos_token_id=[])
    for _ in range(8):
        with torch.no_grad():
            mixed = 0.7 * base(ids).logits[:, -1] + 0.3 * donor(ids).logits[:, -1]
        ids = torch.cat([ids, mixed.argmax(-1, keepdim=True)], dim=1)
    assert text == tok.decode(ids[0, -8:], skip_special_tokens=True)


def test_delta_generate_takes_a_steering_vector_and_the_strength_matters(base, tok):
    vector = SteeringVector({2: torch.randn(32, generator=torch.Generator().manual_seed(1))}, n_layers=4)
    runs = {
        alpha: delta_generate(base, tok, vector, CHAT, alpha, max_new_tokens=12, temperature=0)
        for alpha in (0.0, 2.0, -2.0)
    }
    assert len(set(runs.values())) == 3
    assert (
        delta_generate(base, tok, dict(vector.vectors), CHAT, 2.0, max_new_tokens=12, temperature=0)
        == runs[2.0]
    )


def test_several_layers_at_once(base, donor, tok):
    one, two = (
        latent_mix_generate(base, donor, tok, CHAT, layers, max_new_tokens=12, temperature=0)
        for layers in ([3], [1, 3])
    )
    assert one == latent_mix_generate(base, donor, tok, CHAT, 3, max_new_tokens=12, temperature=0)
    assert one != two


def test_template_options_reach_the_template(base, tok):
    twisted = copy.deepcopy(tok)
    twisted.chat_template = "{{ messages[0]['content'] }}{{ tail }}"
    text = chat_generate(base, twisted, CHAT, max_new_tokens=4, temperature=0, template={"tail": "!!"})
    assert text == chat_generate(base, tok, "Say something.!!", max_new_tokens=4, temperature=0)


def test_streaming_sees_the_same_text(base, donor, tok):
    from transformers import TextStreamer

    class Collect(TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            pieces.append(text)

    pieces: list[str] = []
    streamer = Collect(tok, skip_prompt=True, skip_special_tokens=True)
    text = latent_mix_generate(base, donor, tok, CHAT, 2, max_new_tokens=10, seed=4, streamer=streamer)
    assert "".join(pieces) == text
