"""Base plus the weighted sum of task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from smelt.core.method import Param, method
from smelt.methods._deltas import add_mix
from smelt.methods._params import Int8Mask, Lambda, Normalize, Weight
from smelt.numerics.expr import Sym

_Unused = Param(
    doc="accepted for compatibility", lo=0, hi=1, default=1.0, no_effect="task arithmetic keeps everything"
)
_UnusedFlag = Param(doc="accepted for compatibility", no_effect="task arithmetic keeps everything")


@method(
    base="required",
    summary="Base plus the weighted sum of task vectors.",
    formula="base + lambda * sum(w_i (x_i - base))",
    paper="https://arxiv.org/abs/2212.04089",
    group="start here",
)
def task_arithmetic(
    base: Sym, models: Sequence[Sym], stats: Any, *,
    weight: Weight, lambda_: Lambda = 1.0, normalize: Normalize = False, int8_mask: Int8Mask = False,
    density: Annotated[list[float], _Unused], rescale: Annotated[bool, _UnusedFlag] = False,
) -> Sym:  # fmt: skip
    return add_mix(base, [model - base for model in models], weight, normalize, lambda_)
