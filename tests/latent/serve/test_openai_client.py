"""The server as OpenAI's own client sees it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from serve_kit import LiveServer

from smelt.latent.recipe_choice import read_source
from smelt.latent.serving import Served, load, quiet_loading


def ask(client: Any, prompt: str, model: str = "blend", **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 8, **options}
    return client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": prompt}], **options
    )


def said(answer: Any) -> str:
    return answer.choices[0].message.content


def joined(stream: Any) -> str:
    return "".join(c.choices[0].delta.content or "" for c in stream if c.choices)


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["blend", "base", "donor"]
    assert client.models.retrieve("donor").kind == "donor"


def test_chat(client: Any) -> None:
    answer = ask(client, "r:abcd>")
    assert said(answer) == "dcba" and answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion" and answer.model == "blend"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        7,
        5,
        12,
    )
    assert answer.system_fingerprint.startswith("smelt-")


@pytest.mark.parametrize("model", ["blend", "base", "donor"])
def test_a_stream_says_the_same(client: Any, model: str) -> None:
    for prompt in ("r:abcd>", "s:habe>"):
        options = {"temperature": 1.3, "seed": 5, "max_tokens": 20, "extra_body": {"ignore_eos": True}}
        whole = ask(client, prompt, model, **options)
        chunks = list(
            ask(client, prompt, model, stream=True, stream_options={"include_usage": True}, **options)
        )
        assert joined(chunks) == said(whole)
        assert chunks[0].choices[0].delta.role == "assistant"
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
        assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
        assert {c.id for c in chunks} == {chunks[0].id} and chunks[0].object == "chat.completion.chunk"


def test_it_streams_token_by_token(client: Any) -> None:
    pieces = [c.choices[0].delta.content for c in ask(client, "r:abcd>", stream=True)]
    assert pieces == ["", "d", "c", "b", "a", None]
    counts = [
        c.usage.completion_tokens
        for c in ask(client, "r:abcd>", stream=True, stream_options={"continuous_usage_stats": True})
    ]
    assert counts == [0, 1, 2, 3, 4, 5, 5]


def test_settings_of_one_request(client: Any) -> None:
    """Ratio, layer, operator, scope, sites: for this answer only."""
    answers = {beta: said(ask(client, "s:habe>", extra_body={"beta": beta})) for beta in (0.0, 0.5, 1.0)}
    assert answers[0.0] == said(ask(client, "s:habe>", "base")) != answers[1.0] == "abcf"
    sites = [
        {"layer": 3, "op": "lerp", "weights": [0.5], "schedule": {"kind": "linear", "end": 0.0, "steps": 4}}
    ]
    answer = ask(client, "s:habe>", extra_body={"latent": {"sites": sites, "scope": "generated"}})
    used = answer.smelt["latent"]
    assert used["scope"] == "generated" and used["sites"][0]["schedule"]["kind"] == "linear"
    assert ask(client, "s:habe>", extra_body={"layer": 1}).smelt["latent"]["sites"][0]["layer"] == 1
    off = ask(client, "s:habe>", extra_body={"latent": {"enabled": False}})
    assert said(off) == answers[0.0] and off.smelt["latent"] == {"enabled": False}
    assert said(ask(client, "s:habe>")) == answers[0.5] != answers[1.0]  # the next request is as served


def test_the_same_layer_in_both_forms_is_the_same(client: Any) -> None:
    for op in ("lerp", "slerp", "task_vector"):
        long = {"latent": {"sites": [{"layer": 2, "op": op, "weights": [0.6]}]}}
        short = {"layer": 2, "op": op, "beta": 0.6}
        assert said(ask(client, "s:gfed>", extra_body=long)) == said(ask(client, "s:gfed>", extra_body=short))


def test_parallel_requests_with_different_settings_never_mix(client: Any) -> None:
    """24 requests at once over one set of weights: each answers as it does alone."""
    asks = [
        (prompt, model, {"extra_body": extra, "temperature": 0.9, "seed": seed, "max_tokens": 12})
        for seed, (model, extra) in enumerate(
            [("blend", {"beta": b / 5, "layer": 4 - b % 3}) for b in range(6)]
            + [("base", {}), ("donor", {})]
            + [("blend", {"latent": {"enabled": False}}), ("blend", {"op": "lerp", "scope": "generated"})]
            + [("blend", {"op": "regmean", "beta": 0.8}), ("blend", {"beta": 1.4})]
        )
        for prompt in ("r:abcd>", "s:habe>")
    ]
    alone = [said(ask(client, prompt, model, **options)) for prompt, model, options in asks]
    with ThreadPoolExecutor(12) as threads:
        together = list(threads.map(lambda a: said(ask(client, a[0], a[1], **a[2])), asks))
    assert together == alone and len(set(alone)) > 6


def test_logprobs(client: Any) -> None:
    answer = ask(client, "r:abcd>", logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert "".join(item.token for item in content) == "dcba"
    for item in content:
        assert item.top_logprobs[0].token == item.token and item.top_logprobs[0].logprob == item.logprob <= 0
        assert bytes(item.bytes).decode() == item.token and len(item.top_logprobs) == 3
    streamed = ask(client, "r:abcd>", logprobs=True, top_logprobs=3, stream=True)
    pieces = [c.choices[0].logprobs.content[0] for c in streamed if c.choices[0].logprobs]
    assert [piece.model_dump() for piece in pieces] == [item.model_dump() for item in content]


def test_a_judge_can_be_forced_to_a_letter(client: Any) -> None:
    """Bias of 100 leaves three tokens; one token is asked for."""
    served_ids = {letter: str("".join(sorted_alphabet()).index(letter)) for letter in "ABC"}
    answer = ask(client, "Who wins?", max_tokens=1, logit_bias=dict.fromkeys(served_ids.values(), 100))
    assert said(answer) in "ABC" and answer.choices[0].finish_reason == "length"
    only = ask(client, "Who wins?", max_tokens=1, logit_bias={served_ids["B"]: 100})
    assert said(only) == "B"


def sorted_alphabet() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def test_several_answers(client: Any) -> None:
    options = {"n": 3, "temperature": 2.0, "seed": 11, "max_tokens": 6}
    answer = ask(client, "r:abcd>", **options)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2] and len(set(texts)) > 1
    rows = ["", "", ""]
    for chunk in ask(client, "r:abcd>", stream=True, **options):
        for choice in chunk.choices:
            rows[choice.index] += choice.delta.content or ""
    assert rows == texts
    assert said(ask(client, "r:abcd>", temperature=2.0, seed=12, max_tokens=6)) == texts[1]
    assert answer.smelt["seeds"] == [11, 12, 13]


def test_stop_strings(client: Any) -> None:
    for stop in ("b", ["zz", "ba"]):
        answer = ask(client, "r:abcd>", stop=stop)
        assert said(answer) == "dc" and answer.choices[0].finish_reason == "stop"
    assert joined(ask(client, "r:abcd>", stop="ba", stream=True)) == "dc"


def test_completions(client: Any) -> None:
    answer = client.completions.create(
        model="blend", prompt=["r:abcd>", "s:abcd>"], temperature=0, logprobs=2
    )
    assert [choice.text for choice in answer.choices] == ["dcba", "bcde"]
    report = answer.choices[1].logprobs
    assert report.tokens == list("bcde") and report.text_offset == [0, 1, 2, 3]
    assert report.top_logprobs[0]["b"] == report.token_logprobs[0] and len(report.top_logprobs[0]) == 2
    by_ids = client.completions.create(model="base", prompt=[81, 25], max_tokens=1)
    assert by_ids.usage.prompt_tokens == 2
    streamed = list(client.completions.create(model="blend", prompt="r:abcd>", temperature=0, stream=True))
    assert "".join(c.choices[0].text for c in streamed) == "dcba" and streamed[0].object == "text_completion"


def test_messages_may_come_in_parts_and_other_roles(client: Any) -> None:
    parts = [{"type": "text", "text": "r:ab"}, {"type": "text", "text": "cd>"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    answer = client.chat.completions.create(
        model="base", messages=messages, max_tokens=1, user="me", store=False
    )
    assert answer.usage.prompt_tokens == 8  # the parts are joined by a line end


def test_a_saved_directory_behind_the_server(served: Served, merged_dir: Path, client: Any) -> None:
    recipe, folder = read_source(merged_dir)
    with quiet_loading():
        again = load(recipe, folder, full_donors=False, name="mine")
    with LiveServer(again, workers=1) as live, live.openai() as other:
        assert [model.id for model in other.models.list()] == ["mine", "base"]
        for prompt in ("r:abcd>", "s:habe>"):
            assert said(ask(other, prompt, "mine")) == said(ask(client, prompt))
        with pytest.raises(openai.NotFoundError, match="only as deep as the sites need"):
            ask(other, "x", "donor")
