"""One model's tensor as it is, or scaled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from smelt.core.method import Param, method
from smelt.numerics.expr import Sym


@method(
    base="ignored",
    summary="One model's tensors as they are, or scaled; for stacking layers.",
    max_models=1,
    formula="scale * x",
    group="start here",
)
def passthrough(
    base: None, models: Sequence[Sym], stats: Any, *,
    scale: Annotated[list[float], Param(doc="factor of this model's tensors", default=1.0)],
) -> Sym:  # fmt: skip
    (model,), (factor,) = models, scale
    return model if factor == 1.0 else model * factor
