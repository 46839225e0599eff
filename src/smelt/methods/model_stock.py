"""Model stock: average, pulled towards the base by the angle between the task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from smelt.core.method import Param, method
from smelt.methods._spheres import weighted
from smelt.numerics import spheres
from smelt.numerics.expr import Sym
from smelt.numerics.stats import Measuring, TensorInfo, gram


def _measure(
    base: Sym, models: Sequence[Sym], info: TensorInfo, *, filter_wise: bool, clamp: bool
) -> Measuring:
    axis = "row" if filter_wise and len(info.shape) > 1 else None
    products = yield from gram([model - base for model in models], axis)  # type: ignore[arg-type]
    ratio = spheres.stock_ratio(products, clamp)
    share = np.repeat(ratio[..., None], len(models), axis=-1) / len(models)
    return np.concatenate([1.0 - ratio[..., None], share], axis=-1), axis


@method(
    base="required",
    summary="Average, pulled towards the base by the angle between the task vectors.",
    measure=_measure,
    min_models=2,
    formula="t mean(x_i) + (1-t) base, t = N c / (1 + (N-1) c), c the mean cosine between task vectors",
    paper="https://arxiv.org/abs/2403.19522",
    group="robust",
)
def model_stock(
    base: Sym, models: Sequence[Sym], stats: Any, *,
    filter_wise: Annotated[bool, Param(doc="one angle per row instead of per tensor")] = False,
    clamp: Annotated[bool, Param(doc="keep t within 0 and 1")] = False,
) -> Sym:  # fmt: skip
    coefficients, axis = stats
    return weighted([base, *models], coefficients, axis)
