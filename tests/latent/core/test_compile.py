"""``torch.compile`` of the wrapper: one graph, no breaks, and settings changed later are seen."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from latent_tiny import prompt, tiny_causal
from transformers import StaticCache

from smelt.latent import LatentMergedForCausalLM, Site


@pytest.mark.slow
@torch.no_grad()
def test_compiled_as_one_graph_and_live_changes_seen() -> None:
    torch._dynamo.reset()
    base = tiny_causal("llama", 1, num_hidden_layers=2)
    merged = LatentMergedForCausalLM.from_models(
        base, tiny_causal("llama", 2, num_hidden_layers=2), [Site(1)]
    )
    compiled: Any = torch.compile(merged, backend="eager", fullgraph=True)
    ids = prompt(9)

    def check(**call: Any) -> None:
        expected = merged(ids, use_cache=False, **call).logits
        torch.testing.assert_close(compiled(ids, use_cache=False, **call).logits, expected, atol=1e-6, rtol=0)

    check()
    with merged.using([Site(2, "lerp", [0.4])]):
        check()
    failures: list[BaseException] = []

    def other_thread() -> None:
        try:
            with torch.no_grad(), merged.using([Site(2, "slerp", [0.2])]):
                check()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join()
    assert not failures
    assert torch.equal(torch.compile(base, backend="eager")(ids).logits, base(ids).logits)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_decoding_on_a_static_cache() -> None:
    torch._dynamo.reset()
    merged = LatentMergedForCausalLM.from_models(
        tiny_causal("llama", 1, num_hidden_layers=2), tiny_causal("llama", 2, num_hidden_layers=2), [Site(1)]
    )
    compiled: Any = torch.compile(merged, backend="eager", fullgraph=True)
    ids = prompt(12)
    whole = merged(ids, use_cache=False).logits
    cache = StaticCache(config=merged.config, max_cache_len=16)
    merged(ids[:, :4], past_key_values=cache)
    for column in range(4, 12):
        out = compiled(ids[:, column : column + 1], past_key_values=cache).logits
        torch.testing.assert_close(out, whole[:, column : column + 1], atol=1e-5, rtol=0)
