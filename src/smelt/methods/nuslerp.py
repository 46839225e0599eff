"""Spherical interpolation of two models by weight, whole tensors or single rows or columns, or their task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from smelt.core.method import Param, method
from smelt.methods._params import Weight
from smelt.methods._spheres import add_base, differences, weighted
from smelt.numerics import spheres
from smelt.numerics.expr import Sym
from smelt.numerics.stats import Axis, Measuring, TensorInfo, gram


def _axis(flatten: bool, row_wise: bool) -> Axis | None:
    """The documented names are reversed: "row wise" turns columns (vectors along dimension 0)."""
    if flatten:
        return None
    return "column" if row_wise else "row"


def _measure(
    base: Sym | None, models: Sequence[Sym], info: TensorInfo, *,
    weight: list[float], nuslerp_flatten: bool, nuslerp_row_wise: bool,
) -> Measuring:  # fmt: skip
    axis = _axis(nuslerp_flatten or len(info.shape) < 2, nuslerp_row_wise)
    if len(models) == 1:
        return np.ones(1), None
    share = sum(weight)
    t = weight[1] / share if abs(share) >= 1e-6 else 0.5
    products = yield from gram(differences(base, models), axis)
    return spheres.nuslerp(products, t), axis


@method(
    base="optional",
    summary="Spherical interpolation of two models by their weights; with a base, of their task vectors.",
    measure=_measure,
    min_models=1,
    max_models=2,
    formula="slerp with t = w_2 / (w_1 + w_2)",
    group="robust",
)
def nuslerp(
    base: Sym | None, models: Sequence[Sym], stats: Any, *, weight: Weight,
    nuslerp_flatten: Annotated[bool, Param(doc="one angle for the whole tensor")] = True,
    nuslerp_row_wise: Annotated[
        bool, Param(doc="without flatten: turn vectors along dimension 0 instead of the last")
    ] = False,
) -> Sym:  # fmt: skip
    coefficients, axis = stats
    if len(models) == 1:
        return models[0]
    return add_base(base, weighted(differences(base, models), coefficients, axis))
