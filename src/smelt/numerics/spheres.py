"""Coefficients of merges that turn vectors: everything follows from the Gram matrix of the inputs.

Every function takes G = <x_i, x_j> in float64, [..., n, n], and returns c with result = sum c_i x_i. Leading
dimensions hold many independent vectors (rows or columns of a matrix).
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def _norms(gram: Array) -> Array:
    return np.sqrt(np.maximum(np.diagonal(gram, axis1=-2, axis2=-1), 0.0))


def _cosine(gram: Array) -> Array:
    norms = _norms(gram)
    product = norms[..., 0] * norms[..., 1]
    return np.clip(
        np.divide(gram[..., 0, 1], product, out=np.zeros_like(product), where=product > 0), -1.0, 1.0
    )


def _arc(cosine: Array, t: float, straight: Array) -> Array:
    """sin((1-t) a)/sin a and sin(t a)/sin a; 1-t and t where ``straight``."""
    angle = np.arccos(cosine)
    sine = np.where(straight, 1.0, np.sin(angle))
    first = np.where(straight, 1.0 - t, np.sin((1.0 - t) * angle) / sine)
    second = np.where(straight, t, np.sin(t * angle) / sine)
    return np.stack([first, second], axis=-1)


def slerp(gram: Array, t: float, threshold: float = 0.9995) -> Array:
    """Spherical interpolation of two vectors; straight where they are nearly colinear or one is zero.

    >>> slerp(np.array([[1.0, 0.0], [0.0, 1.0]]), 0.5).round(6).tolist()
    [0.707107, 0.707107]
    """
    cosine = _cosine(gram)
    return _arc(cosine, t, (np.abs(cosine) > threshold) | (_norms(gram) == 0).any(-1))


def nuslerp(gram: Array, t: float) -> Array:
    """As slerp, but straight only where the sine of the angle vanishes."""
    cosine = _cosine(gram)
    sine = np.sin(np.arccos(cosine))
    return _arc(cosine, t, (np.abs(sine) < 1e-8) | (_norms(gram) == 0).any(-1))


def multislerp(gram: Array, weights: Array, eps: float) -> Array:
    """Direction of the weighted mean of unit vectors, scaled by the weighted mean of norms.

    Where that direction vanishes the weighted sum itself is taken.
    """
    norms = _norms(gram)
    scaled = np.divide(weights, norms + eps, out=np.zeros_like(norms), where=norms + eps > 0)
    length = np.sqrt(np.maximum(np.einsum("...i,...ij,...j->...", scaled, gram, scaled), 0.0))
    flat = (length < eps) | (length == 0)
    factor = (weights * norms).sum(-1) / np.where(flat, 1.0, length)
    return np.where(flat[..., None], np.broadcast_to(weights, scaled.shape), scaled * factor[..., None])


def karcher(gram: Array, weights: Array, max_iter: int, tol: float) -> Array:
    """Weighted Karcher (Frechet) mean of directions, scaled by the weighted mean of norms.

    Vectors of norm zero have no direction; they count in the scale only.
    """
    norms = _norms(gram)
    known = norms > 0
    weight = np.where(known, weights, 0.0)
    if not weight.sum() > 0:
        return np.zeros_like(norms)
    weight = weight / weight.sum()
    safe = np.where(known, norms, 1.0)
    cosines = gram / np.outer(safe, safe)
    point = _unit(weight, cosines)
    for _ in range(max_iter):
        step = _tangent(point, weight, cosines, known, tol)
        length = np.sqrt(max(float(step @ cosines @ step), 0.0))
        if length < tol:
            break
        point = _unit(np.cos(length) * point + np.sin(length) * step / length, cosines)
    return point / safe * known * float(weights @ norms)


def _unit(point: Array, cosines: Array) -> Array:
    length = float(point @ cosines @ point)
    if length <= 1e-24:  # opposite directions cancel: start from the heaviest
        point = np.eye(len(point))[int(np.argmax(point))]
        length = float(point @ cosines @ point)
    return point / np.sqrt(length)


def _tangent(point: Array, weight: Array, cosines: Array, known: Array, tol: float) -> Array:
    """Weighted mean of the logarithms of all directions at ``point``."""
    along = np.clip(cosines @ point, -1.0, 1.0)
    angle = np.arccos(along)
    use = known & (angle >= tol) & (np.pi - angle > 1e-12)
    pull = np.where(use, weight * angle / np.where(use, np.sin(angle), 1.0), 0.0)
    return pull - float(pull @ along) * point


def stock_ratio(gram: Array, clamp: bool) -> Array:
    """How far model stock goes from the base to the mean: N c / (1 + (N-1) c), c the mean cosine of pairs."""
    count = gram.shape[-1]
    if count == 1:  # no pair, no angle: the model itself
        return np.ones(gram.shape[:-2])
    norms = _norms(gram)
    product = norms[..., :, None] * norms[..., None, :]
    cosines = np.clip(np.divide(gram, product, out=np.zeros_like(gram), where=product > 0), -1.0, 1.0)
    pairs = (cosines.sum((-2, -1)) - np.trace(cosines, axis1=-2, axis2=-1)) / (count * (count - 1))
    below = 1.0 + (count - 1) * pairs
    ratio = np.where(np.abs(below) < 1e-12, 0.0, count * pairs / np.where(np.abs(below) < 1e-12, 1.0, below))
    return np.clip(ratio, 0.0, 1.0) if clamp else ratio
