"""Spherical interpolation between a base and one model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from smelt.core.method import Param, method
from smelt.methods._spheres import weighted
from smelt.numerics import spheres
from smelt.numerics.expr import Sym
from smelt.numerics.stats import Measuring, TensorInfo, gram


def _measure(base: Sym, models: Sequence[Sym], info: TensorInfo, *, t: float) -> Measuring:
    if not models:
        return np.ones(1)
    return spheres.slerp((yield from gram([base, *models])), t)


@method(
    base="member",
    summary="Spherical interpolation from the base (t = 0) to the other model (t = 1).",
    measure=_measure,
    min_models=1,
    max_models=2,
    formula="sin((1-t)a)/sin(a) base + sin(t a)/sin(a) other, a the angle between them; a line when nearly colinear",
    group="start here",
)
def slerp(
    base: Sym,
    models: Sequence[Sym],
    stats: Any,
    *,
    t: Annotated[float, Param(doc="0 is the base, 1 the other", lo=0, hi=1)],
) -> Sym:
    return weighted([base, *models], stats)
