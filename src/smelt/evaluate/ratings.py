"""Ratings of several systems: Bradley-Terry with Davidson's ties, a first-position term, and intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from smelt.core.errors import EvaluationError
from smelt.evaluate.intervals import Estimate, Floats, Resampler

BATCH = 250  # bootstrap fits solved together


@dataclass(frozen=True, slots=True)
class Game:
    """One judgement: systems in the order shown, and the value of the first: 1, 1/2 or 0."""

    first: str
    second: str
    value: float
    question: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Ratings:
    """Fitted ratings, in logits with mean 0. A difference r gives odds exp(r) of winning against losing."""

    systems: tuple[str, ...]
    rating: tuple[Estimate, ...]
    position: Estimate  # what being shown first is worth
    tie: Estimate  # Davidson's nu: 0 no ties; 1: ties as likely as a win between equals
    games: int
    rank_range: tuple[tuple[int, int], ...]  # best and worst rank within the confidence level

    def expected(self, first: int, second: int) -> float:
        """Expected score of one system against another, free of position: wins plus half the ties."""
        difference = _number(self.rating[first]) - _number(self.rating[second])
        win, lose = math.exp(difference / 2), math.exp(-difference / 2)
        tie = _number(self.tie)
        return (win + tie / 2) / (win + lose + tie)


def _number(estimate: Estimate) -> float:
    return 0.0 if estimate.value is None else estimate.value


def fit_ratings(
    games: Sequence[Game],
    *,
    ridge: float = 1e-2,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Ratings:
    """Maximum penalised likelihood; intervals from a bootstrap over questions, stratified by source.

    P(first wins) : P(tie) : P(second wins) = exp(r_i + g) : nu exp((r_i + g + r_j) / 2) : exp(r_j)
    """
    systems = tuple(sorted({game.first for game in games} | {game.second for game in games}))
    _check_connected(games, systems)
    table = _Table(games, systems)
    centre = table.fit(table.counts.sum(axis=0)[None], ridge)[0]
    samples = _bootstrap(table, games, ridge, draws, seed)
    edges = ((1 - level) / 2, (1 + level) / 2)

    def estimate(value: float, drawn: Floats) -> Estimate:
        low, high = (float(x) for x in np.quantile(drawn, edges)) if len(drawn) else (None, None)
        return Estimate(float(value), low, high, len(games), "bootstrap")

    count = len(systems)
    return Ratings(
        systems=systems,
        rating=tuple(estimate(centre[i], samples[:, i]) for i in range(count)),
        position=estimate(centre[count], samples[:, count]),
        tie=estimate(table.nu(centre), np.array([table.nu(row) for row in samples])),
        games=len(games),
        rank_range=_ranks(centre[:count], samples[:, :count], edges),
    )


def _ranks(centre: Floats, samples: Floats, edges: tuple[float, float]) -> tuple[tuple[int, int], ...]:
    drawn = samples if len(samples) else centre[None]
    ranks = 1 + np.argsort(np.argsort(-drawn, axis=1), axis=1)
    low, high = np.quantile(ranks, edges, axis=0)
    return tuple((math.floor(a), math.ceil(b)) for a, b in zip(low, high, strict=True))


def _check_connected(games: Sequence[Game], systems: tuple[str, ...]) -> None:
    if len(systems) < 2:
        raise EvaluationError(f"{len(systems)} systems in {len(games)} games", expected="at least two")
    reached: set[str] = set()
    grown = {systems[0]}
    while grown != reached:
        reached = set(grown)
        for game in games:
            if game.first in grown or game.second in grown:
                grown |= {game.first, game.second}
    lost = sorted(set(systems) - reached)
    if lost:
        names = ", ".join(lost)
        raise EvaluationError(
            f"{names} never met {systems[0]} or anyone it met",
            expected="systems that are connected by games",
            fix="judge at least one pair that links the groups",
        )


class _Table:
    """Outcome counts per question and ordered pair of systems, and the features of each outcome."""

    def __init__(self, games: Sequence[Game], systems: tuple[str, ...]) -> None:
        index = {name: place for place, name in enumerate(systems)}
        meetings = sorted({(index[game.first], index[game.second]) for game in games})
        column = {meeting: place for place, meeting in enumerate(meetings)}
        names, question = np.unique(np.array([game.question for game in games]), return_inverse=True)
        meeting = np.array([column[index[game.first], index[game.second]] for game in games])
        outcome = np.array(
            [round(2 - 2 * game.value) for game in games]
        )  # 0 first wins, 1 tie, 2 second wins
        self.counts = np.zeros((len(names), len(meetings), 3))
        np.add.at(self.counts, (question, meeting, outcome), 1.0)
        self.systems = len(systems)
        self.has_ties = bool((outcome == 1).any())
        self.features = self._features(meetings)

    def _features(self, meetings: list[tuple[int, int]]) -> Floats:
        """(pairs, outcomes, parameters): how ratings, position term and log nu enter each log-weight."""
        features = np.zeros((len(meetings), 3, self.systems + 2))
        for row, (first, second) in enumerate(meetings):
            for outcome, share in enumerate((1.0, 0.5, 0.0)):
                features[row, outcome, first] = share
                features[row, outcome, second] = 1.0 - share
                features[row, outcome, self.systems] = share
        features[:, 1, self.systems + 1] = 1.0
        return features

    def nu(self, parameters: Floats) -> float:
        """Davidson's tie parameter; exactly 0 when nobody ever tied."""
        return float(np.exp(parameters[-1])) if self.has_ties else 0.0

    def fit(self, counts: Floats, ridge: float) -> Floats:
        """Parameters for a batch of count tables (batch, pairs, 3): Newton on a concave likelihood."""
        used = self.features.shape[2] - (not self.has_ties)
        features = self.features[:, :, :used]
        beta = np.zeros((len(counts), used))
        games = counts.sum(axis=2)
        for _ in range(60):
            share = self._shares(beta, features)
            gradient = np.einsum("bpc,pck->bk", counts - games[:, :, None] * share, features) - ridge * beta
            mean = np.einsum("bpc,pck->bpk", share, features)
            hessian = np.einsum("bp,bpc,pck,pcl->bkl", games, share, features, features, optimize=True)
            hessian -= np.einsum("bp,bpk,bpl->bkl", games, mean, mean, optimize=True)
            hessian += ridge * np.eye(used)
            step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
            step *= np.minimum(1.0, 2.0 / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-12))
            beta += step
            if np.abs(step).max() < 1e-9:
                break
        beta[:, : self.systems] -= beta[:, : self.systems].mean(axis=1, keepdims=True)
        return np.pad(beta, ((0, 0), (0, self.features.shape[2] - used)))

    def _shares(self, beta: Floats, features: Floats) -> Floats:
        logits = np.einsum("pck,bk->bpc", features, beta)
        if not self.has_ties:
            logits[:, :, 1] = -np.inf
        logits -= logits.max(axis=2, keepdims=True)
        weights = np.exp(logits)
        return weights / weights.sum(axis=2, keepdims=True)


def _bootstrap(table: _Table, games: Sequence[Game], ridge: float, draws: int, seed: int) -> Floats:
    strata = {game.question: game.source for game in games}
    questions = sorted(strata)  # the order of table.counts
    resampler = Resampler(questions, [strata[name] for name in questions])
    if not resampler.possible:
        return np.zeros((0, table.systems + 2))
    rng = np.random.default_rng(seed)
    flat = table.counts.reshape(len(questions), -1)
    parts = []
    for start in range(0, draws, BATCH):
        weights = resampler.draw(min(BATCH, draws - start), rng)
        parts.append(table.fit((weights @ flat).reshape(-1, *table.counts.shape[1:]), ridge))
    return np.concatenate(parts) if parts else np.zeros((0, table.systems + 2))
