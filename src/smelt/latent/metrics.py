"""How alike two runs are, and where a blend lies between its sources: CKA, midness and arc ratios.

All functions take sequences of hidden states (T, H) with padding removed and compute in float64.
"""

from __future__ import annotations

import math

import torch

from smelt.core.errors import LatentError
from smelt.latent import operators

Tensor = torch.Tensor

SAME_DIRECTION = (
    1e-6  # radians: below this base and donor are one direction and a ratio of arcs means nothing
)


def linear_cka(X: Tensor, Y: Tensor) -> float:
    """Centred linear CKA of two sequences (T, H1) and (T, H2): 0 unrelated, 1 equal up to rotation and scale.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 3.0]])
    >>> round(linear_cka(x, 5 * x + 1), 12)
    1.0
    """
    x, y = _matrix(X, "X"), _matrix(Y, "Y")
    if x.shape[0] != y.shape[0]:
        advice = "compare states of the same tokens, padding removed"
        raise LatentError(f"X has {x.shape[0]} tokens and Y has {y.shape[0]}", fix=advice)
    if x.shape[0] < 2:
        raise LatentError("CKA of a single token", expected="at least 2 tokens")
    cross, own_x, own_y = _gram_products(_centred(x, "X"), _centred(y, "Y"))
    return min(1.0, cross / math.sqrt(own_x * own_y))


def _centred(states: Tensor, name: str) -> Tensor:
    centred = states - states.mean(dim=0)
    if float(centred.norm()) <= 1e-9 * float(states.norm()):
        raise LatentError(f"{name} is constant over its tokens: CKA is undefined")
    return centred


def _gram_products(x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """Squared Frobenius norms of x'y, x'x and y'y, through whichever Gram matrices are smaller."""
    if x.shape[0] < max(x.shape[1], y.shape[1]):
        of_x, of_y = x @ x.T, y @ y.T  # (T, T)
        return float((of_x * of_y).sum()), float(of_x.square().sum()), float(of_y.square().sum())
    return tuple(float((a.T @ b).square().sum()) for a, b in ((x, y), (x, x), (y, y)))  # type: ignore[return-value]


def _matrix(states: Tensor, name: str) -> Tensor:
    if states.ndim != 2:
        raise LatentError(f"{name} has shape {tuple(states.shape)}", expected="(tokens, hidden size)")
    if not bool(states.isfinite().all()):
        raise LatentError(f"{name} holds NaN or Inf")
    return states.detach().double()


def angle(u: Tensor, v: Tensor) -> Tensor:
    """Angle between directions, radians, over the last axis: accurate near 0 and pi, where acos is not.

    >>> round(float(angle(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1e-9]))), 12)
    1e-09
    """
    return operators.angle(_unit(u.double()), _unit(v.double())).squeeze(-1)


def _unit(x: Tensor) -> Tensor:
    return operators.unit(x)[0]


def arc_deviation(arc_ratio: float, beta: float = 0.5) -> float:
    """Distance of an arc ratio from where the blend should lie: not the radians of ``arc_mid_deviation``.

    >>> round(arc_deviation(0.38), 6)
    0.12
    """
    return abs(arc_ratio - beta)


def midness_seq(Hb: Tensor, Hf: Tensor, Hm: Tensor, *, beta: float | None = None) -> dict[str, float]:
    """Where the merged states lie on the arc from base to fine-tuned ones, averaged over tokens.

    ==================== =====================================================================
    midpoint_cos         cosine of the merged state to the midpoint of the arc
    arc_mid_deviation    ``|d(b, m) - d(b, f) / 2|`` in radians
    arc_ratio            ``d(b, m) / d(b, f)``, over tokens where base and donor differ at all
    arc_deviation        ``|arc_ratio - 1/2|`` of the mean ratio
    ..._median           the same over tokens, unmoved by a few extreme ones (attention sinks)
    tokens, arc_ratio_tokens   how many tokens there are, and how many have an arc ratio
    ==================== =====================================================================

    With ``beta`` also ``beta_cos``, ``beta_arc_deviation`` and ``beta_ratio_deviation``: the same against the
    point at share beta, where a blend of that ratio belongs. ``arc_ratio`` is NaN when no token has one.
    """
    base, donor, merged = (_sequence(states, name) for states, name in ((Hb, "Hb"), (Hf, "Hf"), (Hm, "Hm")))
    if not base.shape == donor.shape == merged.shape:
        found = f"Hb {tuple(base.shape)}, Hf {tuple(donor.shape)}, Hm {tuple(merged.shape)}"
        raise LatentError(found, expected="equal shapes (tokens, hidden size)")
    d_bf, d_bm = angle(base, donor), angle(base, merged)
    result: dict[str, float] = {"tokens": len(base)}
    _add(result, "midpoint_cos", _cosine(merged, _arc_point(base, donor, 0.5)))
    _add(result, "arc_mid_deviation", (d_bm - 0.5 * d_bf).abs())
    _add_ratio(result, d_bm, d_bf)
    if beta is not None:
        _add(result, "beta_cos", _cosine(merged, _arc_point(base, donor, beta)))
        _add(result, "beta_arc_deviation", (d_bm - abs(beta) * d_bf).abs())
        result["beta_ratio_deviation"] = arc_deviation(result["arc_ratio"], abs(beta))
    return result


def _sequence(states: Tensor, name: str) -> Tensor:
    return _matrix(states.unsqueeze(0) if states.ndim == 1 else states, name)


def _arc_point(u: Tensor, v: Tensor, t: float) -> Tensor:
    return operators.slerp(_unit(u), _unit(v), t)


def _cosine(u: Tensor, v: Tensor) -> Tensor:
    return (_unit(u) * _unit(v)).sum(dim=-1).clamp(-1.0, 1.0)


def _add(result: dict[str, float], name: str, values: Tensor) -> None:
    result[name] = float(values.mean()) if len(values) else math.nan
    result[f"{name}_median"] = float(values.quantile(0.5)) if len(values) else math.nan


def _add_ratio(result: dict[str, float], d_bm: Tensor, d_bf: Tensor) -> None:
    defined = d_bf > SAME_DIRECTION
    _add(result, "arc_ratio", d_bm[defined] / d_bf[defined])
    result["arc_ratio_tokens"] = int(defined.sum())
    result["arc_deviation"] = arc_deviation(result["arc_ratio"])
