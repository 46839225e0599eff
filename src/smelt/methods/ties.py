"""Task vectors cut to their largest elements; signs elected, disagreeing elements dropped."""

from __future__ import annotations

from collections.abc import Sequence

from smelt.core.method import method
from smelt.methods._deltas import Thinning, add_elected, measure_magnitude
from smelt.methods._params import (
    Density,
    Int8Mask,
    Lambda,
    Normalize,
    Rescale,
    RescaleNorm,
    ScopeParam,
    Weight,
)
from smelt.numerics.expr import Sym


@method(
    base="required",
    summary="Task vectors cut to their largest elements; signs elected, disagreeing elements dropped.",
    measure=measure_magnitude,
    formula="base + lambda * sum(w_i thin(x_i - base))",
    paper="https://arxiv.org/abs/2306.01708",
    group="robust",
)
def ties(
    base: Sym, models: Sequence[Sym], stats: Thinning, *,
    weight: Weight, density: Density, lambda_: Lambda = 1.0, normalize: Normalize = True,
    rescale: Rescale = False, rescale_norm: RescaleNorm = "l1", scope: ScopeParam = "tensor", int8_mask: Int8Mask = False,
) -> Sym:  # fmt: skip
    deltas = stats.apply([model - base for model in models])
    return add_elected(base, deltas, weight, normalize, lambda_)
