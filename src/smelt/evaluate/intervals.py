"""Intervals and tests on shares and means: Wilson, exact binomial, Holm, stratified cluster bootstrap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CHUNK = 4_000_000  # bootstrap counts held at once


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its confidence interval. ``n`` is what it rests on; no interval where n is too small."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str


def wilson(successes: float, n: int, level: float = 0.95) -> Estimate:
    """Share with Wilson's score interval; fractional successes (ties as halves) are allowed.

    >>> round(wilson(51, 51).low, 3), wilson(51, 51).high
    (0.93, 1.0)
    """
    if n == 0:
        return Estimate(None, None, None, 0, "wilson")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == n else min(1.0, middle + half)
    return Estimate(share, low, high, n, "wilson")


def binomial_p(k: int, n: int, p: float = 0.5) -> float:
    """Exact two-sided binomial test: the probability of all outcomes no likelier than ``k`` of ``n``.

    >>> binomial_p(9, 10) == 22 / 1024
    True
    """
    if n == 0:
        return 1.0
    if p == 0.5:  # exact integers, symmetric
        tail = sum(math.comb(n, i) for i in range(min(k, n - k) + 1))
        return min(1.0, 2 * tail / 2**n)
    logs = [_log_pmf(i, n, p) for i in range(n + 1)]
    return min(1.0, math.fsum(math.exp(value) for value in logs if value <= logs[k] + 1e-9))


def _log_pmf(k: int, n: int, p: float) -> float:
    choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return choose + k * math.log(p) + (n - k) * math.log1p(-p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


class Resampler:
    """Draws whole clusters (questions) with replacement inside each stratum (source).

    From a stratum of m clusters m - 1 are drawn, which makes the variance of the drawn mean unbiased; strata
    of one cluster are pooled, for alone they would show no variance at all.
    """

    def __init__(self, clusters: Sequence[str], strata: Sequence[str] | None = None) -> None:
        names, self.cluster = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
        self.size = len(names)
        owner = np.zeros(self.size, dtype=np.int64)  # stratum of each cluster: that of its first row
        if strata is not None and self.size:
            _, codes = np.unique(np.asarray(strata, dtype=object).astype(str), return_inverse=True)
            owner[self.cluster[::-1]] = codes[::-1]
        self.groups = _merge_singles([np.flatnonzero(owner == code) for code in np.unique(owner)])

    @property
    def possible(self) -> bool:
        """Whether there is anything to resample: at least two clusters."""
        return self.size >= 2

    def totals(self, rows: Floats) -> Floats:
        """Sums of rows per cluster: (n, k) -> (clusters, k)."""
        out = np.zeros((self.size, *rows.shape[1:]))
        np.add.at(out, self.cluster, rows)
        return out

    def draw(self, draws: int, rng: np.random.Generator) -> Floats:
        """How often each cluster counts in each draw, each stratum keeping its size: (draws, clusters)."""
        out = np.zeros((draws, self.size))
        for members in self.groups:
            count = len(members)
            if count == 1:
                out[:, members] = 1.0
                continue
            chosen = rng.integers(0, count, size=(draws, count - 1)) + count * np.arange(draws)[:, None]
            times = np.bincount(chosen.ravel(), minlength=draws * count).reshape(draws, count)
            out[:, members] = times * (count / (count - 1))
        return out

    def means(self, values: Floats, draws: int, seed: int) -> Floats:
        """The mean of ``values`` in each draw; strata keep their share of the rows."""
        sums, counts = self.totals(values), self.totals(np.ones_like(values))
        rng = np.random.default_rng(seed)
        step = max(1, CHUNK // max(1, self.size))
        parts = []
        for start in range(0, draws, step):
            weights = self.draw(min(step, draws - start), rng)
            parts.append(self._stratified_means(weights, sums, counts))
        return np.concatenate(parts) if parts else np.zeros(0)

    def _stratified_means(self, weights: Floats, sums: Floats, counts: Floats) -> Floats:
        total = np.zeros(len(weights))
        for members in self.groups:
            drawn = weights[:, members] @ counts[members]
            mean = (weights[:, members] @ sums[members]) / np.maximum(drawn, 1e-12)
            total += mean * counts[members].sum()
        return total / counts.sum()


def _merge_singles(groups: list[NDArray[np.intp]]) -> list[NDArray[np.intp]]:
    single = [group for group in groups if len(group) == 1]
    several = [group for group in groups if len(group) > 1]
    if not single:
        return several
    rest = np.concatenate(single)
    if len(rest) == 1 and several:
        smallest = min(range(len(several)), key=lambda index: len(several[index]))
        several[smallest] = np.concatenate([several[smallest], rest])
        return several
    return [*several, rest]


def bootstrap_mean(
    values: Sequence[float],
    clusters: Sequence[str],
    strata: Sequence[str] | None = None,
    *,
    draws: int = 4000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Mean with a percentile interval from the stratified cluster bootstrap.

    Where no draw can differ (every value the same) the interval is Wilson's on the number of clusters, and a
    single point when the values are no shares.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return Estimate(None, None, None, 0, "bootstrap")
    resampler = Resampler(clusters, strata)
    mean = float(array.mean())
    if not resampler.possible:
        return Estimate(mean, None, None, len(array), "one question has no interval")
    if np.ptp(array) == 0 and not 0 <= mean <= 1:
        return Estimate(mean, mean, mean, len(array), "constant")
    if np.ptp(array) == 0:
        flat = wilson(mean * resampler.size, resampler.size, level)
        return Estimate(mean, flat.low, flat.high, len(array), "wilson")
    drawn = resampler.means(array, draws, seed)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(mean, float(low), float(high), len(array), "bootstrap")


def questions_needed(effect: float, sd: float = 0.5, power: float = 0.8, alpha: float = 0.05) -> int:
    """Questions needed to see a win rate of 1/2 + effect, when scores of questions spread with ``sd``.

    >>> questions_needed(0.05)
    785
    """
    if effect <= 0 or sd <= 0:
        raise ValueError("effect and sd must be above 0")
    return math.ceil((_z_sum(power, alpha) * sd / effect) ** 2)


def detectable_effect(n: int, sd: float = 0.5, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest distance from 1/2 that ``n`` questions show.

    >>> round(100 * detectable_effect(270), 1), round(100 * detectable_effect(270, sd=0.32), 1)
    (8.5, 5.5)
    """
    return _z_sum(power, alpha) * sd / math.sqrt(n) if n else math.inf


def _z_sum(power: float, alpha: float) -> float:
    normal = NormalDist()
    return normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)
