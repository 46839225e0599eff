"""Merge methods in float64, written from their formulas: what an exact merge must round to.

Every function takes float64 arrays of one tensor and returns float64. Independent of smelt's own code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def linear(models: Sequence[Array], weights: Sequence[float], *, normalize: bool = True) -> Array:
    """sum w x [/ sum w]."""
    mixed = sum((w * x for w, x in zip(weights, models, strict=True)), np.zeros_like(models[0]))
    return mixed / sum(weights) if normalize else mixed


def passthrough(model: Array, scale: float = 1.0) -> Array:
    """scale * x."""
    return scale * model


def _unit(x: Array, floor: float) -> Array:
    norm = float(np.linalg.norm(x))
    return x / norm if norm > floor else x


def slerp(start: Array, end: Array, t: float) -> Array:
    """Between whole tensors; a straight line when |cos| > 0.9995."""
    cosine = float(np.sum(_unit(start, 1e-8) * _unit(end, 1e-8)))
    if abs(cosine) > 0.9995:
        return (1 - t) * start + t * end
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * start + np.sin(t * angle) * end) / np.sin(angle)


def nuslerp(
    first: Array, second: Array, weights: Sequence[float], *,
    base: Array | None = None, axis: int | None = None,
) -> Array:  # fmt: skip
    """Of vectors along ``axis`` (None: the whole tensor), or of differences to a base; t = w2 / (w1 + w2)."""
    total = sum(weights)
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total
    if base is not None:
        return base + nuslerp(first - base, second - base, weights, axis=axis)
    along = axis if first.ndim > 1 else None
    norms = [np.maximum(np.sqrt(np.sum(x * x, axis=along, keepdims=True)), 1e-7) for x in (first, second)]
    cosine = np.sum(first * second / (norms[0] * norms[1]), axis=along, keepdims=True)
    angle = np.arccos(np.clip(cosine, -1, 1))
    sine = np.sin(angle)
    straight = np.abs(sine) < 1e-8
    safe = np.where(straight, 1.0, sine)
    left = np.where(straight, 1 - t, np.sin((1 - t) * angle) / safe)
    right = np.where(straight, t, np.sin(t * angle) / safe)
    return left * first + right * second


def multislerp(
    models: Sequence[Array], weights: Sequence[float], *,
    base: Array | None = None, normalize: bool = True, eps: float = 1e-8,
) -> Array:  # fmt: skip
    """Direction of the weighted mean of units, one tangent step, the weighted mean of the norms."""
    if base is not None:
        shifted = [x - base for x in models]
        return base + multislerp(shifted, weights, normalize=normalize, eps=eps)
    shares = np.asarray(weights, np.float64) / (sum(weights) if normalize else 1.0)
    norms = [float(np.linalg.norm(x)) for x in models]
    units = [x / (norm + eps) for x, norm in zip(models, norms, strict=True)]
    mean = sum((w * u for w, u in zip(shares, units, strict=True)), np.zeros_like(models[0]))
    length = float(np.linalg.norm(mean))
    if length < eps:  # no direction: opposite models, or none that differs from the base
        return sum((w * x for w, x in zip(shares, models, strict=True)), np.zeros_like(models[0]))
    mean = mean / length
    tangents = (w * (u - float(np.sum(u * mean)) * mean) for w, u in zip(shares, units, strict=True))
    step = sum(tangents, np.zeros_like(mean))
    angle = float(np.linalg.norm(step)) + eps
    turned = mean * np.cos(angle) + step * (np.sin(angle) / angle)
    return turned * float(np.dot(shares, norms))


def karcher(models: Sequence[Array], *, max_iter: int = 10, tol: float = 1e-5) -> Array:
    """Fixed point of the mean direction on the sphere, times the mean norm."""
    norms = np.array([np.linalg.norm(x) for x in models])
    alive = [i for i, norm in enumerate(norms) if norm > tol]
    if not alive:
        return np.zeros_like(models[0])
    units = [models[i] / norms[i] for i in alive]
    share = 1.0 / len(alive)
    centre = sum((share * u for u in units), np.zeros_like(models[0]))
    length = float(np.linalg.norm(centre))
    centre = units[0] if length < tol else centre / length
    for _ in range(max_iter):
        pull = np.zeros_like(centre)
        for unit in units:
            cosine = float(np.clip(np.sum(unit * centre), -1, 1))
            angle = np.arccos(cosine)
            if angle >= tol:
                pull += share * (angle / np.sin(angle)) * (unit - cosine * centre)
        size = float(np.linalg.norm(pull))
        if size < tol:
            break
        centre = np.cos(size) * centre + np.sin(size) * pull / size
        centre /= np.linalg.norm(centre)
    return centre * float(norms.mean())


def _cosine(a: Array, b: Array) -> float:
    """Zero when either has no length; no other threshold (the peer has an absolute one)."""
    product = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    return float(np.sum(a * b)) / product if product > 0 else 0.0


def _pairwise_cosine(offsets: Sequence[Array]) -> float:
    cosines = [_cosine(a, b) for i, a in enumerate(offsets) for b in offsets[i + 1 :]]
    return float(np.clip(np.mean(cosines), -1, 1))


def model_stock(base: Array, models: Sequence[Array], *, filter_wise: bool = False) -> Array:
    """t mean + (1-t) base with t = N c / (1 + (N-1) c), c the mean cosine between task vectors."""
    if filter_wise and base.ndim > 1:
        rows = zip(base, *models, strict=True)
        return np.stack([model_stock(row[0], row[1:]) for row in rows])
    count = len(models)
    cosine = _pairwise_cosine([x - base for x in models])
    t = count * cosine / (1 + (count - 1) * cosine)
    return t * linear(models, [1.0] * count) + (1 - t) * base


def keep_largest(delta: Array, density: float) -> Array:
    """Exactly int(density * N) elements of largest magnitude; of equal ones the first in index order."""
    if density >= 1:
        return delta
    flat = delta.ravel()
    order = np.argsort(-np.abs(flat), kind="stable")[: int(density * flat.size)]
    kept = np.zeros_like(flat)
    kept[order] = flat[order]
    return kept.reshape(delta.shape)


def task_arithmetic(
    base: Array,
    models: Sequence[Array],
    weights: Sequence[float],
    *,
    normalize: bool = False,
    scale: float = 1.0,
) -> Array:
    """base + scale * sum w d [/ sum w]."""
    mixed = sum((w * (x - base) for w, x in zip(weights, models, strict=True)), np.zeros_like(base))
    total = sum(weights)
    divisor = total if normalize and abs(total) >= 1e-8 else 1.0
    return base + scale * (mixed / divisor)  # divided first, as the formula is given


def ties(
    base: Array, models: Sequence[Array], weights: Sequence[float], density: Sequence[float], *,
    normalize: bool = True, scale: float = 1.0, rescale: bool = False,
) -> Array:  # fmt: skip
    """Trim, elect signs by the weighted sum, mix what agrees."""
    parts = []
    for x, w, share in zip(models, weights, density, strict=True):
        delta = keep_largest(x - base, share)
        if rescale and np.abs(delta).sum() > 0:
            delta = delta * (np.abs(x - base).sum() / np.abs(delta).sum())
        parts.append(w * delta)
    elected = np.where(sum(parts, np.zeros_like(base)) >= 0, 1.0, -1.0)
    mixed, divisor = np.zeros_like(base), np.zeros_like(base)
    for part, w in zip(parts, weights, strict=True):
        agrees = np.sign(part) == elected
        mixed += np.where(agrees, part, 0.0)
        divisor += np.where(agrees, w, 0.0)
    if normalize:
        mixed /= np.where(divisor == 0, 1.0, divisor)
    return base + scale * mixed
