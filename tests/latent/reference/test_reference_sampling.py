"""Nucleus sampling keeps what it promises to keep, and draws it as often as its probability says."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import TopPLogitsWarper

from smelt.core.errors import LatentError
from smelt.latent.sampling import NucleusProcessor, draw, nucleus, row_generators, top_p_sample


def logits_of(*probs: float) -> Tensor:
    return torch.tensor(probs).log()


def support(probs: Tensor, top_p: float, draws: int = 400) -> set[int]:
    generator = torch.Generator().manual_seed(0)
    return {int(top_p_sample(probs, top_p, generator=generator)) for _ in range(draws)}


def test_the_token_that_crosses_p_stays():
    """Trap 1: with .5 / .3 / .2 and p = .7 the nucleus is {0, 1}."""
    assert support(logits_of(0.5, 0.3, 0.2), 0.7) == {0, 1}


@pytest.mark.parametrize("top_p", [0.0, 0.05, 0.3, 0.7, 0.9, 0.99])
def test_nucleus_equals_the_one_of_transformers(top_p):
    logits = torch.randn(40, 30, generator=torch.Generator().manual_seed(1)) * 3
    probs, order = nucleus(logits, top_p)
    kept = torch.zeros(40, 30, dtype=torch.bool).scatter(-1, order, probs > 0)
    assert torch.equal(kept, ~TopPLogitsWarper(top_p)(None, logits).isinf())


@pytest.mark.parametrize("spread", [0.0, 0.01, 3.0, 8.0])
@pytest.mark.parametrize("top_p", [0.1, 0.9, 0.999])
def test_large_vocabularies_give_the_same_set_by_the_shortlist(monkeypatch, spread, top_p):
    """Peaked and flat distributions, and logits in half precision, which tie a lot."""
    logits = torch.randn(6, 9000, generator=torch.Generator().manual_seed(2)).half().float() * spread
    fast, fast_ids = nucleus(logits, top_p)
    monkeypatch.setattr("smelt.latent.sampling.SHORTLIST", 10**9)
    full, full_ids = nucleus(logits, top_p)
    kept = int((full > 0).sum(-1).max())
    assert torch.equal(fast[:, :kept], full[:, :kept])
    assert torch.equal(fast_ids[:, :kept][fast[:, :kept] > 0], full_ids[:, :kept][full[:, :kept] > 0])
    assert (fast.shape[1] < 9000) == (kept < 1024 and spread > 0)
    seeds = range(6)
    assert draw(fast, row_generators(seeds, 6)).tolist() == draw(full, row_generators(seeds, 6)).tolist()


def test_p_one_keeps_even_the_least_likely_token():
    logits = torch.tensor([[0.0, -80.0, -85.0]])
    assert (nucleus(logits, 1.0)[0] > 0).all()


def test_temperature_zero_is_greedy_and_a_tiny_one_is_not_nan():
    """Trap 1, second half: temperature 0 must not sample at temperature 1."""
    logits = torch.tensor([1.0, 1.1, 0.9])
    assert {top_p_sample(logits, 1.0, 0.0) for _ in range(50)} == {1}
    assert {top_p_sample(logits, 1.0, 1e-38) for _ in range(50)} == {1}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_renormalised_nucleus(temperature):
    logits = logits_of(0.4, 0.3, 0.2, 0.1)
    scaled = torch.softmax(logits / temperature, -1)
    kept = scaled[:3] / scaled[:3].sum()
    top_p = float(scaled[:3].sum()) - 0.01
    drawn = top_p_sample(
        logits.expand(20_000, 4), top_p, temperature, generator=torch.Generator().manual_seed(5)
    )
    seen = torch.bincount(drawn, minlength=4) / 20_000
    assert seen[3] == 0
    for token in range(3):
        share = float(kept[token])
        assert abs(float(seen[token]) - share) < 4 * math.sqrt(share * (1 - share) / 20_000)


def test_same_seed_same_tokens_and_the_global_state_is_left_alone():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(2))
    before = torch.get_rng_state()
    runs = [top_p_sample(logits, generator=row_generators(7, 3)).tolist() for _ in range(2)]
    assert runs[0] == runs[1]
    assert torch.equal(before, torch.get_rng_state())


def test_each_row_is_the_same_alone_and_in_a_batch():
    logits = torch.randn(4, 200, generator=torch.Generator().manual_seed(3))
    batch = top_p_sample(logits, 0.99, generator=row_generators(11, 4)).tolist()
    alone = [top_p_sample(logits[row], 0.99, generator=row_generators(11 + row, 1)) for row in range(4)]
    assert batch == alone
    assert len({*batch}) > 1


def test_forbidden_tokens_are_never_drawn():
    logits = torch.tensor([0.0, float("-inf"), 0.0, float("-inf")])
    assert support(logits, 1.0) == {0, 2}


def test_processor_leaves_one_token_and_its_draws_depend_on_the_seed():
    scores = torch.randn(2, 500, generator=torch.Generator().manual_seed(4))
    first = NucleusProcessor(1.0, 1.0, seed=3)(None, scores)
    assert (first == 0).sum(-1).tolist() == [1, 1]
    assert torch.equal(first, NucleusProcessor(1.0, 1.0, seed=3)(None, scores))
    assert not torch.equal(first, NucleusProcessor(1.0, 1.0, seed=4)(None, scores))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"top_p": 1.2}, "top_p=1.2"),
        ({"top_p": float("nan")}, "top_p=nan"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": float("inf")}, "temperature=inf"),
    ],
)
def test_meaningless_settings_are_refused(arguments, said):
    with pytest.raises(LatentError, match=said):
        top_p_sample(torch.zeros(3), **arguments)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_logits_are_refused(bad):
    with pytest.raises(LatentError, match="NaN"):
        top_p_sample(torch.tensor([0.0, bad, 1.0]))


def test_wrong_shapes_and_counts_are_refused():
    with pytest.raises(LatentError, match="vocabulary"):
        top_p_sample(torch.zeros(1, 2, 3))
    with pytest.raises(LatentError, match="nothing but"):
        top_p_sample(torch.full((2, 3), float("-inf")))
    with pytest.raises(LatentError, match="one for each of the 2 rows"):
        top_p_sample(torch.zeros(2, 3), generator=row_generators(0, 3))
    with pytest.raises(LatentError, match="3 seeds for 2 rows"):
        row_generators([1, 2, 3], 2)
