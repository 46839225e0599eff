"""One generation: what is drawn, what is reported, where it stops, and that rows do not touch each other."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from smelt.core.errors import LatentError
from smelt.latent.generating import Delta, Sampling, Task, Voice, run, stream
from smelt.latent.serving import Blend, Served

GREEDY = Sampling(temperature=0.0)
WARM = Sampling(temperature=1.5, seed=7)


def task_of(served: Served, voice: Voice, *prompts: str, **options: Any) -> Task:
    options = {"max_tokens": 12, "sampling": GREEDY, **options}
    blend = options.pop("blend", Blend())
    return Task(
        tuple(served.encode(voice, p) for p in prompts), options=served.options(voice, blend), **options
    )


def text_of(served: Served, name: str, prompt: str, **options: Any) -> str:
    voice = served.voice(name)
    return run(voice, task_of(served, voice, prompt, **options)).answers[0].text


def test_every_voice_has_its_skill_and_the_blend_both(served: Served) -> None:
    found = {
        name: (text_of(served, name, "r:abcd>"), text_of(served, name, "s:abcd>")) for name in served.voices
    }
    assert found["blend"] == ("dcba", "bcde")
    assert found["base"][0] == "dcba" != found["donor"][0]
    assert found["donor"][1] == "bcde" != found["base"][1]


def test_ratio_0_is_the_base_and_ratio_1_after_the_last_layer_is_the_donor_trunk(served: Served) -> None:
    for prompt in ("r:gfab>", "s:habe>"):
        assert text_of(served, "blend", prompt, blend=Blend(beta=0.0)) == text_of(served, "base", prompt)
    assert text_of(served, "blend", "s:habe>", blend=Blend(beta=1.0)) == "abcf"
    assert text_of(served, "blend", "s:habe>", blend=Blend(enabled=False)) == text_of(
        served, "base", "s:habe>"
    )


def test_greedy_equals_generate_of_transformers(served: Served) -> None:
    for name, voice in served.voices.items():
        ids = torch.tensor([served.encode(voice, "r:hgfe>")])
        theirs = voice.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )
        text = voice.tokenizer.decode(theirs[0, ids.shape[1] :], skip_special_tokens=True)
        assert text_of(served, name, "r:hgfe>") == text


def test_logprobs_are_those_of_a_plain_forward_pass(served: Served) -> None:
    voice = served.voice("base")
    how = Sampling(temperature=0.7, seed=3, logit_bias={97: 5.0}, presence_penalty=1.0)
    task = task_of(served, voice, "r:abcd>", logprobs=3, sampling=how, max_tokens=5, ignore_eos=True)
    choices = run(voice, task).answers[0].choices
    assert len(choices) == 5
    ids = [*task.prompts[0], *(choice.token for choice in choices)]
    with torch.no_grad():
        logs = torch.log_softmax(voice.model(torch.tensor([ids])).logits[0].float(), -1)
    for place, choice in enumerate(choices, len(task.prompts[0]) - 1):
        assert choice.logprob == pytest.approx(float(logs[place, choice.token]), abs=1e-4)
        values, tokens = logs[place].topk(3)
        assert [token for token, _ in choice.top] == tokens.tolist()
        assert [value for _, value in choice.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_a_padding_token_in_a_prompt_is_read(served: Served) -> None:
    """Only what was added to fill short rows is masked."""
    voice = served.voice("base")
    ids = (258, *served.encode(voice, "r:abcd>"), 258)
    longer = served.encode(voice, "r:abcdefgh>")
    choice = run(voice, Task((ids, longer), 1, sampling=GREEDY, logprobs=1)).answers[0].choices[0]
    with torch.no_grad():
        logs = torch.log_softmax(voice.model(torch.tensor([ids])).logits[0, -1].float(), -1)
    assert choice.top[0] == (int(logs.argmax()), pytest.approx(float(logs.max()), abs=1e-4))


def test_offsets_point_into_the_text(served: Served) -> None:
    voice = served.voice("blend")
    answer = run(voice, task_of(served, voice, "r:abcd>", logprobs=0)).answers[0]
    letters = [answer.text[c.offset] for c in answer.choices]
    assert letters == list("dcba") and [c.top for c in answer.choices] == [()] * 4


def test_a_batch_with_padding_is_its_rows_alone(served: Served) -> None:
    """Sampling, penalties and all: a row depends on its prompt and its seed."""
    voice = served.voice("blend")
    prompts = ["s:abcd>", "r:ab>", "r:hgfeabcd>"]
    how = replace(WARM, repetition_penalty=1.3, frequency_penalty=0.4, top_p=0.95, top_k=40, min_p=0.001)
    together = run(voice, task_of(served, voice, *prompts, copies=2, sampling=how, logprobs=1))
    assert [answer.seed for answer in together.answers] == [7, 8, 9, 10, 11, 12]
    for place, answer in enumerate(together.answers):
        alone = task_of(served, voice, prompts[place // 2], sampling=replace(how, seed=7 + place), logprobs=1)
        single = run(voice, alone).answers[0]
        assert (answer.text, answer.tokens, answer.finish) == (single.text, single.tokens, single.finish)
        assert [c.logprob for c in answer.choices] == pytest.approx(
            [c.logprob for c in single.choices], abs=1e-4
        )


def test_sampling_follows_the_probabilities(served: Served) -> None:
    """2000 first tokens against the softmax at that temperature; top_k and bias as well."""
    voice = served.voice("base")
    prompt = "s:habe>"
    how = Sampling(temperature=2.0, seed=0, top_k=4, logit_bias={100: 2.0})
    answers = run(
        voice, task_of(served, voice, prompt, copies=2000, max_tokens=1, sampling=how, logprobs=0)
    ).answers
    counts = Counter(answer.choices[0].token if answer.choices else 257 for answer in answers)
    with torch.no_grad():
        logits = voice.model(torch.tensor([served.encode(voice, prompt)])).logits[0, -1].float()
    logits[100] += 2.0
    logits[logits < logits.topk(4).values[-1]] = float("-inf")
    expected = torch.softmax(logits / 2.0, -1)
    assert len(counts) > 1
    for token in range(len(expected)):
        assert counts[token] / 2000 == pytest.approx(float(expected[token]), abs=0.04)


def test_without_a_seed_answers_differ_and_their_seeds_repeat_them(served: Served) -> None:
    voice = served.voice("base")
    free = Sampling(temperature=2.0)
    first = run(voice, task_of(served, voice, "s:habe>", copies=8, sampling=free)).answers
    assert len({answer.text for answer in first}) > 1
    assert len({answer.seed for answer in first}) == 8
    again = task_of(served, voice, "s:habe>", sampling=replace(free, seed=first[3].seed))
    assert run(voice, again).answers[0].text == first[3].text


def test_penalties_and_bias_are_those_of_their_formulas(served: Served) -> None:
    """Greedy against a loop of plain forward passes: the prompt counts for repetition, not for the others."""
    voice = served.voice("base")
    letter = served.encode(voice, "h")[0]
    how = Sampling(temperature=0.0, presence_penalty=1.5, frequency_penalty=0.7, repetition_penalty=1.4,
                   logit_bias={letter: 3.0})  # fmt: skip
    task = task_of(served, voice, "r:aaaa>a", sampling=how, logprobs=0, ignore_eos=True, max_tokens=10)
    ours = [choice.token for choice in run(voice, task).answers[0].choices]
    assert ours == _penalised_loop(voice.model, list(task.prompts[0]), how, 10)
    plain = task_of(served, voice, "r:aaaa>a", logprobs=0, ignore_eos=True, max_tokens=10)
    assert ours != [choice.token for choice in run(voice, plain).answers[0].choices]


def _penalised_loop(model: Any, prompt: list[int], how: Sampling, steps: int) -> list[int]:
    new: list[int] = []
    for _ in range(steps):
        with torch.no_grad():
            scores = model(torch.tensor([prompt + new])).logits[0, -1].float()
        for token, value in how.logit_bias.items():
            scores[token] += value
        for token in {*prompt, *new}:
            part = scores[token]
            scores[token] = part / how.repetition_penalty if part > 0 else part * how.repetition_penalty
        for token, count in Counter(new).items():
            scores[token] -= how.presence_penalty + how.frequency_penalty * count
        new.append(int(scores.argmax()))
    return new


def test_bias_forbids(served: Served) -> None:
    letter = served.encode(served.voice("base"), "d")[0]
    without = text_of(served, "base", "r:abcd>", sampling=replace(GREEDY, logit_bias={letter: -100.0}))
    assert "d" not in without and text_of(served, "base", "r:abcd>").startswith("d")


def test_stop_strings_end_the_answer_before_them(served: Served) -> None:
    voice = served.voice("blend")
    deltas: list[Delta] = []
    task = task_of(served, voice, "r:abcd>", stops=("ba", "zz"), logprobs=0)
    outcome = run(voice, task, deltas.append)
    answer = outcome.answers[0]
    assert (answer.text, answer.finish) == ("dc", "stop")
    assert "".join(delta.text for delta in deltas) == "dc"
    assert [c.offset for c in answer.choices] == [0, 1]
    assert answer.tokens == 4  # what was generated, shown or not


def test_a_special_token_can_be_a_stop_string(served: Served) -> None:
    """It is not in the text, so it must be found among the tokens."""
    voice = served.voice("base")
    on = run(voice, task_of(served, voice, "r:abcd>", ignore_eos=True, stops=("</s>", "zz"))).answers[0]
    assert (on.text, on.finish, on.tokens) == ("dcba", "stop", 5)


def test_length_and_ignored_end(served: Served) -> None:
    voice = served.voice("base")
    cut = run(voice, task_of(served, voice, "r:abcd>", max_tokens=2)).answers[0]
    assert (cut.text, cut.finish, cut.tokens) == ("dc", "length", 2)
    on = run(voice, task_of(served, voice, "r:abcd>", ignore_eos=True)).answers[0]
    assert on.finish == "length" and on.tokens == 12
    ended = run(voice, task_of(served, voice, "r:abcd>")).answers[0]
    assert (ended.finish, ended.tokens) == ("stop", 5)


def test_cancelling_ends_within_one_token(served: Served) -> None:
    voice, cancel = served.voice("blend"), threading.Event()
    seen: list[Delta] = []

    def listen(delta: Delta) -> None:
        seen.append(delta)
        if delta.tokens == 3:
            cancel.set()

    task = task_of(served, voice, "r:abcd>", max_tokens=100, ignore_eos=True)
    answer = run(voice, task, listen, cancel).answers[0]
    assert (answer.finish, answer.tokens) == ("cancelled", 3)
    assert "".join(delta.text for delta in seen) == answer.text
    assert run(voice, task, None, cancel).answers[0].tokens == 0  # cancelled before it began


def test_a_stream_yields_raises_and_stops(served: Served) -> None:
    voice = served.voice("blend")
    task = task_of(served, voice, "r:abcd>", max_tokens=200, ignore_eos=True)
    whole = run(voice, task).answers[0].text
    assert "".join(delta.text for delta in stream(voice, task)) == whole
    before = threading.active_count()
    for delta in stream(voice, task):
        if delta.tokens == 3:
            break
    assert delta.tokens == 3 and threading.active_count() == before  # nobody generates on
    spoilt = replace(task, sampling=replace(GREEDY, logit_bias={5: float("nan")}))
    with pytest.raises(LatentError, match="NaN"):
        list(stream(voice, spoilt))
    short = served.task(voice, "s:abcd>", Blend(beta=1.0), sampling=GREEDY)
    assert "".join(delta.text for delta in stream(voice, short)) == "bcde"


def test_an_error_of_the_listener_or_the_model_is_not_lost(served: Served) -> None:
    voice = served.voice("blend")

    def angry(delta: Delta) -> None:
        raise ZeroDivisionError("listener")

    with pytest.raises(ZeroDivisionError, match="listener"):
        run(voice, task_of(served, voice, "r:abcd>"), angry)
    spoilt = task_of(served, voice, "r:abcd>", sampling=replace(GREEDY, logit_bias={5: float("nan")}))
    with pytest.raises(LatentError, match="NaN"):
        run(voice, spoilt)
    assert text_of(served, "blend", "r:abcd>") == "dcba"  # and the models are as they were


@pytest.mark.parametrize(
    "wrong",
    [{"temperature": -1.0}, {"top_p": 1.5}, {"top_k": -2}, {"min_p": 2.0}, {"repetition_penalty": 0.0}],
)
def test_sampling_without_a_meaning_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(LatentError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]
