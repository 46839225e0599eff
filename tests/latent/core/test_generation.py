"""Every way to generate: each equals the plain greedy loop, its own cached twin, or itself with the same
seed."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from latent_tiny import byte_tokenizer, prompt, tiny_causal
from transformers import DynamicCache, TextIteratorStreamer

from smelt.core.errors import LatentError
from smelt.latent import LatentMergedForCausalLM, Schedule, Site, Steer

SITES = [Site(2, "slerp", [0.5]), Site("last", "lerp", [0.3], schedule=Schedule("cosine", 1.0, 0.2, 6))]
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 10, "min_new_tokens": 10}


@pytest.fixture(scope="module", params=["all", "generated"])
def merged(request: Any) -> LatentMergedForCausalLM:
    return LatentMergedForCausalLM.from_models(
        tiny_causal("llama", 1), tiny_causal("llama", 2), SITES, scope=request.param
    )


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return prompt(9)


@torch.no_grad()
def greedy_by_hand(merged: Any, ids: torch.Tensor, steps: int = 10) -> torch.Tensor:
    """Argmax over a full recomputation for every token."""
    start, text = ids.shape[1] - 1, ids
    for _ in range(steps):
        logits = merged(text, mix_start=start, use_cache=False).logits[:, -1]
        logits[:, 257] = float("-inf")  # min_new_tokens forbids the end
        text = torch.cat([text, logits.argmax(-1, keepdim=True)], 1)
    return text


def test_greedy(merged, ids) -> None:
    assert torch.equal(merged.generate(ids, **GREEDY), greedy_by_hand(merged, ids))
    assert not torch.equal(merged.generate(ids, **GREEDY), merged.base.generate(ids, **GREEDY))


def test_without_cache(merged, ids) -> None:
    assert torch.equal(merged.generate(ids, use_cache=False, **GREEDY), greedy_by_hand(merged, ids))


@pytest.mark.parametrize("chunk", [2, 4])
def test_chunked_prefill(merged, ids, chunk) -> None:
    assert torch.equal(merged.generate(ids, prefill_chunk_size=chunk, **GREEDY), greedy_by_hand(merged, ids))


def test_static_cache(merged, ids) -> None:
    padded = torch.cat([torch.full((1, 3), 258), ids], 1)
    mask = (padded != 258).long()
    plain = merged.generate(padded, attention_mask=mask, **GREEDY)
    assert torch.equal(
        merged.generate(padded, attention_mask=mask, cache_implementation="static", **GREEDY), plain
    )
    assert torch.equal(plain[:, 3:], greedy_by_hand(merged, ids))


def test_prompt_lookup(merged, ids) -> None:
    again = torch.cat([ids, ids], 1)
    assert torch.equal(
        merged.generate(again, prompt_lookup_num_tokens=3, **GREEDY), greedy_by_hand(merged, again)
    )


def test_assisted_with_the_base_as_drafter(merged, ids) -> None:
    out = merged.generate(ids, assistant_model=merged.base, **GREEDY)
    assert torch.equal(out, greedy_by_hand(merged, ids))


def test_beams(merged, ids) -> None:
    options = {"num_beams": 4, "num_return_sequences": 3, "max_new_tokens": 8, "do_sample": False}
    cached = merged.generate(ids, **options)
    assert cached.shape[0] == 3
    assert torch.equal(cached, merged.generate(ids, use_cache=False, **options))


def test_sampling_follows_the_seed(merged, ids) -> None:
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return merged.generate(
            ids, do_sample=True, top_p=0.9, num_return_sequences=3, max_new_tokens=8, min_new_tokens=8
        )

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_streaming(merged, ids) -> None:
    tokenizer = byte_tokenizer()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    thread = threading.Thread(target=merged.generate, args=(ids,), kwargs={"streamer": streamer, **GREEDY})
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == tokenizer.decode(merged.generate(ids, **GREEDY)[0, ids.shape[1] :])


def test_continuing_from_a_cache(merged, ids) -> None:
    cache = DynamicCache(config=merged.config)
    first = merged.generate(ids, past_key_values=cache, **GREEDY)
    more = torch.cat([first, prompt(3, seed=5)], 1)
    second = merged.generate(more, past_key_values=cache, **GREEDY)
    if merged.settings.scope == "all":
        with merged.using([Site(2, "slerp", [0.5])]):
            cache = DynamicCache(config=merged.config)
            first = merged.generate(ids, past_key_values=cache, **GREEDY)
            more = torch.cat([first, prompt(3, seed=5)], 1)
            second = merged.generate(more, past_key_values=cache, **GREEDY)
            assert torch.equal(second, greedy_by_hand(merged, more))
    assert second.shape[1] == more.shape[1] + 10


def test_per_row_ratio_equals_separate_calls(merged) -> None:
    rows = prompt(6, rows=3)
    with merged.using([Site(2, "slerp", [0.5])]):
        together = merged.generate(rows, beta=torch.tensor([0.0, 0.4, 1.0]), **GREEDY)
        for row, beta in enumerate((0.0, 0.4, 1.0)):
            assert torch.equal(
                together[row : row + 1], merged.generate(rows[row : row + 1], beta=beta, **GREEDY)
            )
        beams = merged.generate(rows, beta=torch.tensor([0.0, 0.4, 1.0]), num_beams=2, max_new_tokens=4)
        one = merged.generate(rows[1:2], beta=0.4, num_beams=2, max_new_tokens=4)
    assert torch.equal(beams[1:2, : one.shape[1]], one)


@torch.no_grad()
def test_mix_start_per_row_scores_right_padded_text(merged) -> None:
    rows = prompt(8, rows=2)
    with merged.using([Site(2, "slerp", [0.5])], scope="generated"):
        both = merged(rows, mix_start=torch.tensor([2, 5])).logits
        for row, start in enumerate((2, 5)):
            single = merged(rows[row : row + 1], mix_start=start).logits
            torch.testing.assert_close(both[row : row + 1], single, atol=2e-5, rtol=0)


@torch.no_grad()
def test_labels_hidden_states_and_logits_to_keep(merged, ids) -> None:
    out = merged(ids, mix_start=3, labels=ids, output_hidden_states=True)
    expected = torch.nn.functional.cross_entropy(out.logits[0, :-1], ids[0, 1:])
    torch.testing.assert_close(out.loss, expected)
    with merged.recording() as tape:
        merged(ids, mix_start=3)
    assert len(out.hidden_states) == 5
    assert torch.equal(out.hidden_states[2], tape[2]["mixed"])
    assert not torch.equal(tape[2]["mixed"], tape[2]["base"])
    last = merged(ids, mix_start=3, logits_to_keep=2).logits
    torch.testing.assert_close(last, out.logits[:, -2:])


def test_activation_addition_starts_at_each_rows_first_token() -> None:
    base = tiny_causal("llama", 1)
    delta = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    merged = LatentMergedForCausalLM.from_models(base, [], steer=[Steer(1, delta, alpha=1.0, scope="first")])
    short = prompt(4)
    padded = torch.cat([torch.full((1, 3), 258), short], 1)
    alone = merged.generate(short, **GREEDY)
    assert torch.equal(merged.generate(padded, attention_mask=(padded != 258).long(), **GREEDY)[:, 3:], alone)
    with merged.recording() as tape, torch.no_grad():
        merged(short)
    torch.testing.assert_close(tape[1]["mixed"][0, :2], tape[1]["base"][0, :2] + delta)
    assert torch.equal(tape[1]["mixed"][0, 2:], tape[1]["base"][0, 2:])


def test_what_cannot_work_is_refused(merged, ids) -> None:
    with pytest.raises(LatentError, match="inputs_embeds"):
        merged.generate(inputs_embeds=torch.zeros(1, 3, 32), max_new_tokens=2)
    with pytest.raises(LatentError, match="inputs_embeds"):
        merged(inputs_embeds=torch.zeros(1, 3, 32))
    with pytest.raises(LatentError, match="continuous batching"):
        merged.generate_batch([[1, 2]])
    with pytest.raises(LatentError, match="cannot be trained"):
        merged.train()
    with pytest.raises(LatentError, match="resized"):
        merged.resize_token_embeddings(300)
    with pytest.raises(LatentError, match="cache has 4 layers"):
        merged(ids, mix_start=1, past_key_values=DynamicCache(config=merged.base.config))
    with pytest.raises(LatentError, match="mix_start=prompt_length"), merged.using(scope="generated"):
        merged(ids)
    cache = DynamicCache(config=merged.config)
    with merged.using([]):
        merged(ids, past_key_values=cache)
    with pytest.raises(LatentError, match="start a new cache"):
        merged(ids[:, :1], mix_start=1, past_key_values=cache)
