"""The arithmetic of a site: hidden states of base and donors in, one hidden state out, in float32 or
wider."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Weight = float | torch.Tensor  # one number, or a tensor that broadcasts against (batch, tokens, 1)

SMALL_ANGLE = 1e-3
KARCHER_STEPS = 8


def wide(state: torch.Tensor) -> torch.Tensor:
    """At least float32."""
    return state if state.dtype == torch.float64 else state.float()


def linear(base: torch.Tensor, donors: Sequence[torch.Tensor], weights: Sequence[Weight]) -> torch.Tensor:
    """(1 - Σβ) h_b + Σ β_d h_d; exact at the two ends for one donor."""
    if len(donors) == 1:
        beta = weights[0]
        if isinstance(beta, torch.Tensor):
            mixed = base * (1 - beta) + donors[0] * beta
            return torch.where(beta == 0, base, torch.where(beta == 1, donors[0], mixed))
        if beta == 1.0:
            return donors[0]
        return torch.add(base * (1 - beta), donors[0], alpha=beta)
    total: Weight = 0.0
    for weight in weights:
        total = total + weight
    mixed = base * (1 - total)
    for donor, weight in zip(donors, weights, strict=True):
        mixed = mixed + donor * weight
    return mixed


def unit(state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Direction and length; a zero vector keeps direction zero."""
    length = torch.linalg.vector_norm(state, dim=-1, keepdim=True)
    return state / length.clamp(min=torch.finfo(state.dtype).tiny), length


def angle(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Angle between unit vectors, accurate near 0 and near π (arccos is not)."""
    across = torch.linalg.vector_norm(u - v, dim=-1, keepdim=True)
    along = torch.linalg.vector_norm(u + v, dim=-1, keepdim=True)
    return 2 * torch.atan2(across, along)


def slerp(base: torch.Tensor, donor: torch.Tensor, beta: Weight) -> torch.Tensor:
    """Great-circle direction, linear length. Near-parallel and zero states fall back to the straight line,
    opposite directions keep the base's.

    >>> a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    >>> slerp(a, b, 0.5).norm().item()
    2.0
    """
    (u, len_u), (v, len_v) = unit(base), unit(donor)
    theta = angle(u, v)
    sine = torch.sin(theta)
    safe = sine.clamp(min=torch.finfo(sine.dtype).tiny)
    left, right = torch.sin((1 - beta) * theta) / safe, torch.sin(beta * theta) / safe
    degenerate = (len_u == 0) | (len_v == 0)
    straight = (theta < SMALL_ANGLE) | degenerate
    opposite = (torch.pi - theta < SMALL_ANGLE) & ~degenerate
    length = (1 - beta) * len_u + beta * len_v
    direction = torch.where(opposite, u, left * u + right * v)
    direction = direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True).clamp(min=1e-30)
    mixed = torch.where(straight, base * (1 - beta) + donor * beta, length * direction)
    if isinstance(beta, torch.Tensor):
        return torch.where(beta == 0, base, torch.where(beta == 1, donor, mixed))
    return mixed if beta != 1.0 else donor


def frechet(base: torch.Tensor, donors: Sequence[torch.Tensor], weights: Sequence[Weight]) -> torch.Tensor:
    """Weighted mean of several states on the sphere (Karcher iteration), lengths interpolated linearly."""
    total: Weight = 0.0
    for weight in weights:
        total = total + weight
    shares: list[Weight] = [1 - total, *weights]
    pairs = [unit(state) for state in (base, *donors)]
    length = sum(share * size for share, (_, size) in zip(shares, pairs, strict=True))
    start = sum(share * direction for share, (direction, _) in zip(shares, pairs, strict=True))
    mean, _ = unit(torch.as_tensor(start))
    for _ in range(KARCHER_STEPS):
        mean = _karcher_step(mean, [direction for direction, _ in pairs], shares)
    mixed = length * mean
    for share, state in zip(shares, (base, *donors), strict=True):
        if isinstance(share, torch.Tensor):
            mixed = torch.where(share == 1, state, mixed)
        elif share == 1.0:
            mixed = state
    return mixed


def _karcher_step(
    mean: torch.Tensor, points: Sequence[torch.Tensor], shares: Sequence[Weight]
) -> torch.Tensor:
    """Average in the tangent space at ``mean`` and walk there along the sphere."""
    tangent = torch.zeros_like(mean)
    for point, share in zip(points, shares, strict=True):
        theta = angle(point, mean)
        sine = torch.sin(theta)
        ratio = torch.where(sine > 1e-7, theta / sine.clamp(min=1e-7), torch.ones_like(theta))
        tangent = tangent + share * ratio * (point - torch.cos(theta) * mean)
    step = torch.linalg.vector_norm(tangent, dim=-1, keepdim=True)
    moved = torch.cos(step) * mean + torch.sin(step) * tangent / step.clamp(min=1e-30)
    return unit(torch.where(step > 0, moved, mean))[0]


def gram_solve(grams: Sequence[torch.Tensor], lam: float, alpha: float) -> list[torch.Tensor]:
    """The maps P_i = (Σ G + λ·mean|diag G|·I)^-1 G_i of RegMean, off-diagonal entries of G scaled by
    ``alpha``.

    The ridge is relative to the mean diagonal, so that ``lam`` does not depend on the scale of the states.
    ``grams`` are (..., H, H); λ is spread over the G_i so that the maps sum to the identity.
    """
    eye = torch.eye(grams[0].shape[-1], dtype=grams[0].dtype, device=grams[0].device)
    shrunk = [alpha * gram + (1 - alpha) * gram * eye for gram in grams]
    total = torch.stack(list(shrunk)).sum(0)
    scale = total.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None].clamp(min=1e-30)
    ridge = max(lam, 1e-6) * scale * eye
    share = ridge / len(shrunk)
    return [torch.linalg.solve(total + ridge, gram + share) for gram in shrunk]


def gram_mix(
    base: torch.Tensor, donors: Sequence[torch.Tensor], maps: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Σ P_i h_i for row states (..., T, H)."""
    mixed = base @ maps[0].transpose(-1, -2)
    for donor, matrix in zip(donors, maps[1:], strict=True):
        mixed = mixed + donor @ matrix.transpose(-1, -2)
    return mixed
