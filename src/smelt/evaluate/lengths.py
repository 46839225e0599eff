"""The win rate at equal lengths: a fractional logistic regression of the score on the length difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from smelt.evaluate.intervals import Estimate, Floats


def length_controlled(
    scores: Sequence[float],
    lengths_a: Sequence[int],
    lengths_b: Sequence[int],
    clusters: Sequence[str],
    *,
    ridge: float = 1e-2,
    level: float = 0.95,
) -> Estimate:
    """logit E[score] = b0 + b1 tanh(d / sd(d)) with d = length of A - length of B; the answer is sigmoid(b0).

    The slope carries a small ridge, the interval is the cluster-robust one on the logit. There is no estimate
    where all scores are equal.
    """
    y = np.asarray(scores, dtype=np.float64)
    difference = np.asarray(lengths_a, dtype=np.float64) - np.asarray(lengths_b, dtype=np.float64)
    if len(y) < 2 or np.ptp(y) == 0:
        return Estimate(None, None, None, len(y), "logistic")
    spread = float(difference.std())
    x = np.column_stack([np.ones_like(y), np.tanh(difference / spread) if spread else np.zeros_like(y)])
    penalty = np.diag([0.0, ridge])
    fitted = _fit(x, y, penalty)
    error = _robust_error(x, y, fitted, penalty, clusters)
    z = NormalDist().inv_cdf(0.5 + level / 2)
    low, value, high = (_sigmoid(fitted[0] + step * error) for step in (-z, 0.0, z))
    return Estimate(value, low, high, len(y), "logistic")


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def _fit(x: Floats, y: Floats, penalty: Floats) -> Floats:
    """Newton's method; the penalised log-likelihood is concave, a halved step where it would fall."""
    beta = np.zeros(x.shape[1])
    best = _objective(x, y, beta, penalty)
    for _ in range(100):
        share = 1 / (1 + np.exp(-(x @ beta)))
        gradient = x.T @ (y - share) - penalty @ beta
        hessian = (x * (share * (1 - share))[:, None]).T @ x + penalty + 1e-12 * np.eye(len(beta))
        step = np.linalg.solve(hessian, gradient)
        while _objective(x, y, beta + step, penalty) < best - 1e-12 and np.abs(step).max() > 1e-12:
            step = step / 2
        beta = beta + step
        best = _objective(x, y, beta, penalty)
        if np.abs(step).max() < 1e-10:
            break
    return beta


def _objective(x: Floats, y: Floats, beta: Floats, penalty: Floats) -> float:
    z = x @ beta
    return float(y @ z - np.logaddexp(0.0, z).sum() - beta @ penalty @ beta / 2)


def _robust_error(x: Floats, y: Floats, beta: Floats, penalty: Floats, clusters: Sequence[str]) -> float:
    """Standard error of the intercept: sandwich over clusters, with the usual small-sample factor."""
    share = 1 / (1 + np.exp(-(x @ beta)))
    bread = np.linalg.inv((x * (share * (1 - share))[:, None]).T @ x + penalty + 1e-12 * np.eye(len(beta)))
    names, owner = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    scores = np.zeros((len(names), x.shape[1]))
    np.add.at(scores, owner, x * (y - share)[:, None])
    factor = len(names) / max(1, len(names) - 1)
    return math.sqrt(max(0.0, float((bread @ (factor * scores.T @ scores) @ bread)[0, 0])))
