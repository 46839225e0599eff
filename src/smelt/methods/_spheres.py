"""What the methods that turn vectors share: inputs weighted by coefficients from their Gram matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from smelt.numerics.expr import Sym, along_columns, along_rows, shifted, total
from smelt.numerics.stats import Axis


def weighted(vectors: Sequence[Sym], coefficients: np.ndarray, axis: Axis | None = None) -> Sym:
    """sum c_i x_i, with one c_i per tensor, row or column."""
    spread = {"row": along_rows, "column": along_columns}
    parts = []
    for position, vector in enumerate(vectors):
        c = coefficients[..., position]
        parts.append(vector * (float(c) if axis is None else spread[axis](c)))
    return total(parts)


def differences(base: Sym | None, models: Sequence[Sym]) -> list[Sym]:
    """Task vectors when there is a base, else the models themselves."""
    return [model - base for model in models] if base is not None else list(models)


def add_base(base: Sym | None, value: Sym) -> Sym:
    """The value added to the base, if there is one."""
    return value if base is None else shifted(base, value)
