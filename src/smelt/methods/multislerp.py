"""Barycentre of several models on the sphere, in one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from smelt.core.method import Param, method
from smelt.methods._params import Weight
from smelt.methods._spheres import add_base, differences, weighted
from smelt.numerics import spheres
from smelt.numerics.expr import Sym
from smelt.numerics.stats import Measuring, TensorInfo, gram


def _measure(
    base: Sym | None, models: Sequence[Sym], info: TensorInfo, *,
    weight: list[float], normalize_weights: bool, eps: float,
) -> Measuring:  # fmt: skip
    weights = np.asarray(weight, np.float64)
    share = float(weights.sum())
    if normalize_weights and share != 0:
        weights = weights / share
    return spheres.multislerp((yield from gram(differences(base, models))), weights, eps)


@method(
    base="optional",
    summary="Direction of the weighted mean of unit vectors, at the weighted mean of their norms.",
    measure=_measure,
    formula="m / |m| * sum(w_i |x_i|), m = sum(w_i x_i / |x_i|)",
)
def multislerp(
    base: Sym | None, models: Sequence[Sym], stats: Any, *, weight: Weight,
    normalize_weights: Annotated[bool, Param(doc="make the weights sum to 1")] = True,
    eps: Annotated[float, Param(doc="guard of the norms", lo=0)] = 1e-8,
) -> Sym:  # fmt: skip
    if len(models) == 1:
        return models[0]
    return add_base(base, weighted(differences(base, models), stats))
