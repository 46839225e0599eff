"""Karcher mean: the true centre of several models on the sphere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from smelt.core.errors import MethodError
from smelt.core.method import Param, method
from smelt.methods._spheres import weighted
from smelt.numerics import spheres
from smelt.numerics.expr import Sym
from smelt.numerics.stats import Measuring, TensorInfo, gram


def _measure(
    base: None, models: Sequence[Sym], info: TensorInfo, *, weight: list[float], max_iter: int, tol: float
) -> Measuring:
    share = sum(weight)
    if share == 0:
        raise MethodError("the weights sum to zero", expected="at least one weight above 0")
    weights = np.asarray(weight, np.float64) / share
    return spheres.karcher((yield from gram(models)), weights, max_iter, tol)


@method(
    base="ignored",
    summary="Riemannian centre of mass of the models' directions, at the mean of their norms.",
    measure=_measure,
    formula="argmin over unit u of sum w_i angle(u, x_i)^2, times sum w_i |x_i|",
    group="robust",
)
def karcher(
    base: None, models: Sequence[Sym], stats: Any, *,
    weight: Annotated[list[float], Param(doc="weight of this model", lo=0, default=1.0)],
    max_iter: Annotated[int, Param(doc="most steps", lo=0)] = 10,
    tol: Annotated[float, Param(doc="step length that ends the search", lo=0)] = 1e-5,
) -> Sym:  # fmt: skip
    if len(models) == 1:
        return models[0]
    return weighted(models, stats)
