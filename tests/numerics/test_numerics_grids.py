"""Rows and columns of tensors of one, two and three dimensions, through sums and coefficients and any block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from harness import merge, tensor
from smelt.core.errors import MethodError
from smelt.core.method import MethodSpec, method, spec_of
from smelt.numerics.blocks import GRAIN
from smelt.numerics.compiled import CompiledBackend
from smelt.numerics.expr import along_columns, along_rows, wide
from smelt.numerics.reference import NumpyBackend
from smelt.numerics.stats import Sum
from smelt.numerics.torch_backend import TorchBackend

BACKENDS = {"numpy": NumpyBackend(), "numba": CompiledBackend(), "torch": TorchBackend("cpu")}
SHAPES = [(7,), (5, 4), (3, 4, 5), (), (1, 6), (6, 1), (0,), (2, 0), (2, 1, 3), (500, 300), (40, 50, 60)]


def centred(axis: Any, table: Callable[..., Any] | None, again: bool) -> MethodSpec:
    """x minus its mean along an axis; ``again`` asks for a second sum that uses the first one's coefficients."""

    def measure(base: None, models: Any, info: Any) -> Any:
        (x,) = models
        (sums,) = yield [Sum(wide(x), axis)]
        if not again:
            return np.asarray(sums)
        (rest,) = yield [Sum(wide(x - spread(sums)), None)]
        (columns,) = yield [Sum(wide(x - spread(sums)), "column")]
        return np.asarray(sums), rest, columns

    def spread(values: Any) -> Any:
        return float(values) if table is None else table(values)

    @method(base="ignored", summary="Test.", measure=measure)
    def shifted_by_sums(base, models, stats):  # type: ignore[no-untyped-def]
        results.append(stats)
        return models[0] - spread(stats[0] if again else stats)

    results: list[Any] = []
    shifted_by_sums.results = results  # type: ignore[attr-defined]
    return spec_of(shifted_by_sums)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_along_rows(shape: tuple[int, ...], backend: str) -> None:
    values = tensor(np.random.default_rng(0).normal(0, 1, shape), "F64")
    found = merge(centred("row", along_rows, False), [values], block=GRAIN, backend=BACKENDS[backend])
    wanted = values.values - values.values.sum(-1, keepdims=True) if shape else values.values * 0
    assert np.allclose(found.values, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_along_columns(shape: tuple[int, ...], backend: str) -> None:
    """A column is a position within a slice of dimension 0; a vector of one dimension is one column."""
    values = tensor(np.random.default_rng(1).normal(0, 1, shape), "F64")
    found = merge(centred("column", along_columns, False), [values], block=GRAIN, backend=BACKENDS[backend])
    wanted = values.values - values.values.sum(0, keepdims=True) if shape else values.values * 0
    assert np.allclose(found.values, wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("table", [along_rows, along_columns])
@pytest.mark.parametrize("shape", [(500, 300), (40, 50, 60), (7,), (3, 4, 5), (1, 700)], ids=str)
def test_sums_of_what_has_coefficients_itself(shape: tuple[int, ...], table: Any, backend: str) -> None:
    values = tensor(np.random.default_rng(2).normal(0, 1, shape), "F64")
    by_row = table is along_rows
    spec = centred("row" if by_row else "column", table, True)
    found = merge(spec, [values], block=GRAIN, backend=BACKENDS[backend])
    rest = values.values - values.values.sum(-1 if by_row else 0, keepdims=True)
    _, total, columns = spec.combine.results[0]  # type: ignore[attr-defined]
    assert np.allclose(found.values, rest, rtol=0, atol=1e-9)
    assert total == pytest.approx(rest.sum(), abs=1e-6)
    assert np.allclose(columns, rest.sum(0).reshape(-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1, 499])
def test_too_few_coefficients_are_refused(size: int) -> None:
    """A compiled loop would read past the end."""

    @method(base="ignored", summary="Test.")
    def careless(base, models, stats):  # type: ignore[no-untyped-def]
        return (
            models[0] * along_rows(np.ones(size + 1)) if size == 1 else models[0] * along_rows(np.ones(size))
        )

    with pytest.raises(MethodError, match=r"careless gave .* expected 500 for rows, 3 for columns"):
        merge(spec_of(careless), [tensor(np.zeros((500, 3)))], backend=BACKENDS["numba"])
