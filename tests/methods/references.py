"""Every merge method in plain float64 vector arithmetic, written from its definition; slow and obvious.

Inputs and results are float64 arrays of one tensor. Nothing here looks at smelt's own formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

Array = np.ndarray
Arrays = Sequence[np.ndarray]


def linear(models: Arrays, weight: Sequence[float], normalize: bool = True) -> Array:
    """Weighted sum, divided by the sum of weights."""
    mixed = np.zeros_like(models[0])
    for w, x in zip(weight, models, strict=True):
        mixed = mixed + w * x
    return mixed / sum(weight) if normalize else mixed


def passthrough(model: Array, scale: float = 1.0) -> Array:
    return model * scale


def _length(x: Array) -> float:
    return float(np.sqrt(np.sum(x * x)))


def slerp(first: Array, second: Array, t: float) -> Array:
    """Great-circle interpolation of whole tensors; a straight line above |cos| 0.9995 or when one is zero."""
    lengths = _length(first), _length(second)
    if 0.0 in lengths:
        return (1 - t) * first + t * second
    cosine = float(np.sum((first / lengths[0]) * (second / lengths[1])))
    if abs(cosine) > 0.9995:
        return (1 - t) * first + t * second
    angle = np.arccos(np.clip(cosine, -1, 1))
    return np.sin((1 - t) * angle) / np.sin(angle) * first + np.sin(t * angle) / np.sin(angle) * second


def _turn(first: Array, second: Array, t: float) -> Array:
    """Slerp without the colinear switch; a line only where the sine of the angle vanishes."""
    lengths = _length(first), _length(second)
    if 0.0 in lengths:
        return (1 - t) * first + t * second
    angle = np.arccos(np.clip(np.sum((first / lengths[0]) * (second / lengths[1])), -1, 1))
    if abs(np.sin(angle)) < 1e-8:
        return (1 - t) * first + t * second
    return (np.sin((1 - t) * angle) * first + np.sin(t * angle) * second) / np.sin(angle)


def nuslerp(
    models: Arrays,
    weight: Sequence[float],
    base: Array | None = None,
    flatten: bool = True,
    row_wise: bool = False,
) -> Array:
    """t from the weights; vectors are the tensor, its rows (last dimension) or, "row wise", those along dimension 0."""
    if len(models) == 1:
        return models[0]
    if base is not None:
        return base + nuslerp([x - base for x in models], weight, None, flatten, row_wise)
    share = weight[0] + weight[1]
    t = 0.5 if abs(share) < 1e-6 else weight[1] / share
    first, second = models
    if flatten or first.ndim < 2:
        return _turn(first, second, t)
    if row_wise:
        moved = [np.moveaxis(x, 0, -1) for x in models]
        return np.moveaxis(nuslerp(moved, weight, None, False, False), -1, 0)
    pairs = zip(first.reshape(-1, first.shape[-1]), second.reshape(-1, first.shape[-1]), strict=True)
    return np.stack([_turn(a, b, t) for a, b in pairs]).reshape(first.shape)


def multislerp(
    models: Arrays,
    weight: Sequence[float],
    base: Array | None = None,
    normalize: bool = True,
    eps: float = 1e-8,
) -> Array:
    """Normalised mean of unit vectors, moved by the exponential map along the mean tangent, times the mean norm."""
    if len(models) == 1:
        return models[0]
    if base is not None:
        return base + multislerp([x - base for x in models], weight, None, normalize, eps)
    w = np.array(weight) / (sum(weight) if normalize else 1.0)
    norms = np.array([_length(x) for x in models])
    units = [x / (n + eps) for x, n in zip(models, norms, strict=True)]
    mean = np.sum([a * u for a, u in zip(w, units, strict=True)], axis=0)
    if _length(mean) < eps:
        return np.sum([a * x for a, x in zip(w, models, strict=True)], axis=0)
    mean = mean / _length(mean)
    tangent = np.sum([a * (u - np.sum(u * mean) * mean) for a, u in zip(w, units, strict=True)], axis=0)
    radius = _length(tangent)
    moved = mean * np.cos(radius) + (tangent * (np.sin(radius) / radius) if radius > 0 else 0.0)
    return moved * float(np.sum(w * norms))


def karcher(
    models: Arrays, weight: Sequence[float] | None = None, max_iter: int = 10, tol: float = 1e-5
) -> Array:
    """Riemannian gradient descent to the weighted centre of the directions, times the weighted mean norm."""
    if len(models) == 1:
        return models[0]
    w = np.array(weight if weight is not None else [1.0] * len(models), np.float64)
    w = w / w.sum()
    norms = np.array([_length(x) for x in models])
    kept = [i for i, n in enumerate(norms) if n > 0]
    if not kept:
        return np.zeros_like(models[0])
    units = {i: models[i] / norms[i] for i in kept}
    a = {i: w[i] / sum(w[j] for j in kept) for i in kept}
    centre = np.sum([a[i] * units[i] for i in kept], axis=0)
    centre = centre / _length(centre)
    for _ in range(max_iter):
        tangent = np.zeros_like(centre)
        for i in kept:
            cosine = float(np.clip(np.sum(centre * units[i]), -1, 1))
            angle = np.arccos(cosine)
            if angle >= tol:
                tangent = tangent + a[i] * angle / np.sin(angle) * (units[i] - cosine * centre)
        step = _length(tangent)
        if step < tol:
            break
        centre = np.cos(step) * centre + np.sin(step) * tangent / step
        centre = centre / _length(centre)
    return centre * float(np.sum(w * norms))


def model_stock(base: Array, models: Arrays, filter_wise: bool = False, clamp: bool = False) -> Array:
    """t mean + (1 - t) base; t from the mean cosine of all pairs of task vectors."""
    if filter_wise and base.ndim > 1:
        width = base.shape[-1]
        rows = zip(base.reshape(-1, width), *(x.reshape(-1, width) for x in models), strict=True)
        return np.stack([model_stock(b, x, False, clamp) for b, *x in rows]).reshape(base.shape)
    count, offsets = len(models), [x - base for x in models]
    cosines = []
    for i in range(count):
        for j in range(i + 1, count):
            product = _length(offsets[i]) * _length(offsets[j])
            cosines.append(float(np.sum(offsets[i] * offsets[j])) / product if product > 0 else 0.0)
    c = float(np.mean(cosines))
    t = count * c / (1 + (count - 1) * c)
    t = min(max(t, 0.0), 1.0) if clamp else t
    return t * np.mean(models, axis=0) + (1 - t) * base


def keep_largest(delta: Array, density: float) -> Array:
    """Exactly int(density * N) elements of largest magnitude, the first of equal ones."""
    flat = delta.reshape(-1)
    if density >= 1:
        return delta
    ranked = sorted(range(flat.size), key=lambda i: (-abs(flat[i]), i)) if flat.size < 5000 else _ranked(flat)
    kept = np.zeros_like(flat)
    for_keeping = np.asarray(ranked[: int(density * flat.size)], np.int64)
    kept[for_keeping] = flat[for_keeping]
    return kept.reshape(delta.shape)


def _ranked(flat: Array) -> Array:
    return np.lexsort((np.arange(flat.size), -np.abs(flat)))


def keep_random(delta: Array, density: float, seed: int, name: str, model: int) -> Array:
    """Elements whose 24-bit hash of (seed, name, model, index) is below the density."""
    if density >= 1:
        return delta
    of_tensor, of_model = (
        int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
        for text in (f"{seed}\x1f{name}", f"{seed}\x1f{name}\x1f{model}")
    )
    key = (of_model >> 32 << 32) + of_tensor % 2**32
    index = np.arange(delta.size, dtype=np.uint64)
    low, high = (index & 0xFFFFFFFF).astype(np.uint32), (index >> np.uint64(32)).astype(np.uint32)
    stride = np.uint32(0x9E3779B1)
    first = _mixed(low * stride + np.uint32(key & 0xFFFFFFFF))
    draw = _mixed(first ^ (high * stride + np.uint32(key >> 32))) >> np.uint32(8)
    return np.where((draw / 2.0**24 < density).reshape(delta.shape), delta, 0.0)


def _mixed(x: Array) -> Array:
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def rescaled(thin: Array, full: Array, density: float, norm: str) -> Array:
    """Back to the L1 norm before thinning, or by 1 / density."""
    if norm == "inverse_density":
        return thin / density if density > 0 else thin
    left = float(np.abs(thin).sum())
    return thin * (float(np.abs(full).sum()) / left) if left > 0 else thin


def add_deltas(
    base: Array, deltas: Arrays, weight: Sequence[float], normalize: bool, lambda_: float, elect: bool
) -> Array:
    """base + lambda * mix; with ``elect`` only what has the sign of the weighted sum takes part, element by element."""
    parts = [w * d for w, d in zip(weight, deltas, strict=True)]
    sums = np.zeros_like(base)
    for part in parts:
        sums = sums + part
    if not elect:
        share = sum(weight)
        return base + (sums / (share if normalize and abs(share) >= 1e-8 else 1.0)) * lambda_
    elected = np.where(sums >= 0, 1.0, -1.0)
    mixed, divisor = np.zeros_like(base), np.zeros_like(base)
    for w, part in zip(weight, parts, strict=True):
        agrees = np.sign(part) == elected
        mixed = mixed + np.where(agrees, part, 0.0)
        divisor = divisor + np.where(agrees, w, 0.0)
    if normalize:
        mixed = mixed / np.where(divisor == 0, 1.0, divisor)
    return base + mixed * lambda_
