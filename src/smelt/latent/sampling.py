"""Nucleus sampling: one token per row of logits, reproducible by seed, the same alone and in a batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from smelt.core.errors import LatentError

SHORTLIST = 1024  # sorting these first is ten times faster than sorting a large vocabulary

Generators = torch.Generator | Sequence[torch.Generator] | None


def check_sampling(top_p: float, temperature: float) -> None:
    """Refuse values that have no meaning."""
    if not 0.0 <= top_p <= 1.0:
        raise LatentError(f"top_p={top_p}", expected="a number from 0 (greedy) to 1 (every token)")
    if not 0.0 <= temperature < float("inf"):
        raise LatentError(f"temperature={temperature}", expected="a finite number, 0 (greedy) or larger")


def nucleus(logits: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The smallest set of most likely tokens whose probabilities reach ``top_p``, crossing token included.

    Returns the probabilities in falling order, zero outside the set, and the token ids in that order: (B, N),
    where N is the vocabulary or a shortlist that holds the whole set.
    """
    probs = torch.softmax(logits.float(), dim=-1)
    if top_p < 1.0 and probs.shape[-1] >= 4 * SHORTLIST:
        short, ids = _sorted(*probs.topk(SHORTLIST, dim=-1))
        kept = _keep(short, top_p)
        least = torch.where(kept > 0, kept, 1.0).amin(dim=-1)
        if bool((least > short[:, -1]).all()):  # the set ends inside the list, and not within a tie
            return kept, ids
    everything, ids = probs.sort(dim=-1, descending=True, stable=True)
    return (_keep(everything, top_p) if top_p < 1.0 else everything.double()), ids


def _sorted(probs: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """In falling order, equal probabilities by id, as a stable sort of the vocabulary has them."""
    ids, order = ids.sort(dim=-1)
    probs, order = probs.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    return probs, ids.gather(-1, order)


def _keep(probs: Tensor, top_p: float) -> Tensor:
    """Float64 probabilities, zero for every token before which ``top_p`` was reached."""
    wide = probs.double()
    keep = wide.cumsum(dim=-1) - wide < top_p
    keep[..., 0] = True
    return wide * keep


def draw(probs: Tensor, generators: Generators = None) -> Tensor:
    """One column per row of unnormalised ``probs`` (B, V): the cumulative sum inverted at a uniform number.

    The number is drawn on the generator's own device, so a CPU generator gives equal tokens on any device.
    """
    cumulative = probs.cumsum(dim=-1)
    uniform = _uniform(probs.shape[0], generators).to(probs.device)
    picked = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)[:, 0]
    last = (probs > 0).sum(dim=-1) - 1  # rounding must not step past the last token that has probability
    return torch.minimum(picked, last)


def _uniform(rows: int, generators: Generators) -> Tensor:
    if isinstance(generators, Sequence):
        if len(generators) != rows:
            raise LatentError(f"{len(generators)} generators", expected=f"one for each of the {rows} rows")
        return torch.cat([_uniform(1, generator).cpu() for generator in generators])
    device = generators.device if generators is not None else "cpu"
    return torch.rand(rows, dtype=torch.float64, generator=generators, device=device)


def top_p_sample(
    logits: Tensor, top_p: float = 0.9, temperature: float = 1.0, *, generator: Generators = None
) -> int | Tensor:
    """Draw the next token from the nucleus of ``logits``: (V,) gives an int, (B, V) a tensor of B ids.

    The token that crosses ``top_p`` stays in the nucleus, and temperature 0 is greedy.

    >>> top_p_sample(torch.tensor([0.1, 2.0, 0.3]), temperature=0)
    1
    >>> top_p_sample(torch.tensor([[0.0, 9.0], [9.0, 0.0]]), top_p=0.5).tolist()
    [1, 0]
    """
    check_sampling(top_p, temperature)
    rows = _rows_of(logits)
    tokens = _sample_rows(rows, top_p, temperature, generator)
    return tokens if logits.ndim == 2 else int(tokens[0])


def _rows_of(logits: Tensor) -> Tensor:
    if logits.ndim not in (1, 2) or 0 in logits.shape:
        found = f"logits of shape {tuple(logits.shape)}"
        raise LatentError(found, expected="(vocabulary,) or (batch, vocabulary)")
    rows = logits if logits.ndim == 2 else logits[None]
    if bool(rows.isnan().any() | rows.amax(dim=-1).isinf().any()):
        advice = "look for overflow in half precision"
        raise LatentError("logits hold NaN, +Inf, or nothing but -Inf", fix=advice)
    return rows


def _sample_rows(rows: Tensor, top_p: float, temperature: float, generators: Generators) -> Tensor:
    if temperature == 0:
        return rows.argmax(dim=-1)
    shifted = rows.float() - rows.float().amax(dim=-1, keepdim=True)  # a tiny temperature cannot overflow
    probs, order = nucleus(shifted / temperature, top_p)
    return order.gather(-1, draw(probs, generators)[:, None])[:, 0]


def row_generators(seed: int | Sequence[int], rows: int) -> list[torch.Generator]:
    """One CPU generator per row. Row r of an int seed uses seed + r: a batch equals single calls."""
    seeds = [seed + row for row in range(rows)] if isinstance(seed, int) else list(seed)
    if len(seeds) != rows:
        raise LatentError(f"{len(seeds)} seeds for {rows} rows", expected="one int, or one seed for each row")
    return [torch.Generator().manual_seed(each) for each in seeds]


class NucleusProcessor(LogitsProcessor):
    """Samples inside ``generate``: leaves only the drawn token possible, so greedy search must take it.

    Unlike ``do_sample=True`` it draws from its own generators: a seeded run neither reads nor disturbs the
    global state, threads do not interfere, and each row is the same alone or in a batch. It is used up after
    one call of ``generate``.
    """

    def __init__(self, top_p: float, temperature: float, seed: int | Sequence[int] | None = None) -> None:
        check_sampling(top_p, temperature)
        self.top_p, self.temperature, self.seed = top_p, temperature, seed
        self._generators: list[torch.Generator] | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (B, V) with the drawn token of each row at 0 and all others at -Inf."""
        if self.seed is not None and self._generators is None:
            self._generators = row_generators(self.seed, scores.shape[0])
        tokens = _sample_rows(scores, self.top_p, self.temperature, self._generators)
        return torch.full_like(scores, float("-inf")).scatter_(-1, tokens[:, None], 0.0)
