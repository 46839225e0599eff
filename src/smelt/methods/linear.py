"""Weighted average."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from smelt.core.errors import MethodError
from smelt.core.method import method
from smelt.methods._params import Normalize, Weight, weighed
from smelt.numerics.expr import Sym, total


@method(
    base="ignored",
    summary="Weighted average of models.",
    formula="sum(w_i x_i) / sum(w_i)",
    paper="https://arxiv.org/abs/2203.05482",
    group="start here",
)
def linear(
    base: None, models: Sequence[Sym], stats: Any, *, weight: Weight, normalize: Normalize = True
) -> Sym:
    share = sum(weight)
    if normalize and share == 0:
        raise MethodError(
            "the weights sum to zero",
            expected="a sum other than 0",
            fix="set normalize: false or other weights",
        )
    mix = total(weighed(models, weight))
    return mix / share if normalize and share != 1 else mix  # weights scaled first would round twice
