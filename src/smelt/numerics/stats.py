"""What a method may ask to be measured before it combines, as plain requests over expressions.

A ``measure`` function is a generator: it yields lists of requests, receives the results in the same order,
and returns what its ``combine`` needs. Each yield is one streamed round over the tensor.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Any, Literal

import numpy as np

from smelt.core.errors import MethodError
from smelt.numerics.counter import model_key
from smelt.numerics.expr import Sym, above_cut, where, wide

Scope = Literal["tensor", "layer", "model"]
Axis = Literal["row", "column"]
Measuring = Generator[list[Any], list[Any], Any]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a method may know of the tensor it works on: never a file, a device or a dtype."""

    name: str
    shape: tuple[int, ...]
    seed: int = 0

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    def key(self, model: int) -> int:
        """The random stream of one model for this tensor."""
        return model_key(self.seed, self.name, model)


@dataclass(frozen=True, slots=True)
class Sum:
    """Sum of an expression in float64: a number, or an array along rows (last dimension) or columns (dimension 0)."""

    value: Sym
    axis: Axis | None = None


@dataclass(frozen=True, slots=True)
class Top:
    """The cut that keeps int(density * n) largest of an expression that is never negative.

    Over a layer or a model, the requests of all its tensors with the same ``stream`` (a model's position, say)
    are one question; without one, requests at the same place of the list are.
    """

    value: Sym
    density: float
    scope: Scope = "tensor"
    stream: int | None = None

    def __post_init__(self) -> None:
        if self.value.kind != "num":
            raise MethodError("Top needs an expression in the accumulation dtype", fix="leave out wide(...)")


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the largest end: everything above ``value``, and of those equal to it the first by index.

    ``index`` is that of the last kept equal element of this tensor: inf keeps all of them, -1 none.
    """

    value: float
    index: float = inf

    def keeps(self, values: Sym) -> Sym:
        """Truth per element."""
        if self.value < 0:
            return values >= 0.0
        if self.value == inf:
            return values > inf
        return above_cut(values, self.value, self.index)


KEEP_ALL = Cut(-1.0)
KEEP_NONE = Cut(inf)


def keep_top(values: Sym, cut: Cut, of: Sym | None = None) -> Sym:
    """The values (or ``of``) where ``values`` are among the largest, else zero."""
    kept = values if of is None else of
    return kept if cut == KEEP_ALL else where(cut.keeps(values), kept, 0.0)


def gram(vectors: Sequence[Sym], axis: Axis | None = None) -> Generator[list[Any], list[Any], np.ndarray]:
    """Inner products of all pairs: [n, n], or [vectors along the axis, n, n]."""
    count = len(vectors)
    pairs = [(i, j) for i in range(count) for j in range(i, count)]
    sums = yield [Sum(wide(vectors[i]) * wide(vectors[j]), axis) for i, j in pairs]
    matrix = np.zeros((*np.shape(sums[0]), count, count)) if pairs else np.zeros((0, 0))
    for (i, j), value in zip(pairs, sums, strict=True):
        matrix[..., i, j] = matrix[..., j, i] = value
    return matrix
