"""Formulas are traced: shared parts once, numbers lifted out, misuse answered with advice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from smelt.core.errors import MethodError
from smelt.numerics.blocks import Block, Grid
from smelt.numerics.expr import (
    Program,
    Sym,
    above_cut,
    along_columns,
    along_rows,
    clip,
    element_index,
    maximum,
    minimum,
    narrow,
    shifted,
    sign,
    sqrt,
    total,
    uniform,
    where,
    wide,
)  # fmt: skip
from smelt.numerics.reference import NumpyBackend
from smelt.numerics.stats import KEEP_ALL, KEEP_NONE, Cut, Top, keep_top

X, Y = Sym.input(0), Sym.input(1)


def evaluate(formula: Sym, *inputs: Any, shape: tuple[int, int] = (1, 1)) -> list[float]:
    """The formula on float64 inputs."""
    raws = [np.asarray(values, np.float64) for values in inputs] or [np.zeros(4)]
    count = raws[0].size
    block = Block(raws, ("F64",) * len(raws), count, Grid(0, shape[0], shape[1]))
    out = np.zeros(count)
    NumpyBackend().combine(Program.of([formula]), block, np.dtype(np.float64), out, "F64")
    return out.tolist()


def operations(formula: Sym) -> list[str]:
    return [op for op, *_ in Program.of([formula]).code]


def test_what_is_shared_is_computed_once() -> None:
    delta = Y - X
    assert operations(delta * delta + abs(delta)).count("sub") == 1
    assert operations((Y - X) * (Y - X)).count("sub") == 1, (
        "equal expressions are one even when written twice"
    )
    assert operations(X + Y - (Y + X)).count("add") == 2, "order of operands is kept: no reassociation"


def test_numbers_are_lifted_so_that_structure_depends_on_form_alone() -> None:
    def program(a: float, b: float) -> Program:
        return Program.of([X * a + where(b < Y, Y, 0.0)])

    first, second, equal = program(0.3, 1.0), program(0.7, -2.0), program(0.5, 0.5)
    assert first.structure == second.structure == equal.structure
    assert (first.consts, equal.consts) == ((0.3, 1.0, 0.0), (0.5, 0.5, 0.0))
    assert first.structure != Program.of([X * 0.3]).structure


def test_random_streams_are_shared_by_key() -> None:
    program = Program.of([where(uniform(7) < 0.5, X, uniform(7)) + uniform(8)])
    assert program.keys == (7, 8)
    assert program.key_array.tolist() == [[7, 0], [8, 0]]
    assert Program.of([uniform(2**63 + 5)]).key_array.tolist() == [[5, 2**31]]


def test_only_inputs_that_are_read_are_listed() -> None:
    assert Program.of([Sym.input(3) + Sym.input(1)]).inputs == (1, 3)
    assert Program.of([Sym.lift(2.0)]).inputs == ()


def test_several_outputs_share_one_program() -> None:
    delta = Y - X
    program = Program.of([wide(delta) * wide(delta), wide(abs(delta))])
    assert [op for op, *_ in program.code].count("sub") == 1
    assert len(program.outputs) == 2


def test_hundreds_of_models_are_no_problem() -> None:
    inputs = [np.full(3, float(i)) for i in range(700)]
    formula = total(Sym.input(i) * 1.0 for i in range(700))
    assert evaluate(formula, *inputs) == [sum(range(700))] * 3


@pytest.mark.parametrize(
    ("formula", "wanted"),
    [
        (X + 1, [0.0, 1.0, 3.0]), (1 - X, [2.0, 1.0, -1.0]), (2 * X, [-2.0, 0.0, 4.0]), (4 / (X + 3), [2.0, 4 / 3, 0.8]),
        (-X, [1.0, 0.0, -2.0]), (abs(X), [1.0, 0.0, 2.0]), (sign(X), [-1.0, 0.0, 1.0]), (sqrt(X * X), [1.0, 0.0, 2.0]),
        (minimum(X, 0.5), [-1.0, 0.0, 0.5]), (maximum(0, X), [0.0, 0.0, 2.0]), (clip(X, -0.5, 1), [-0.5, 0.0, 1.0]),
        (where((X > -0.5) & ~(X >= 2), 7, X), [-1.0, 7.0, 2.0]), (where((X < 0) | (X == 2), 1, 0), [1.0, 0.0, 1.0]),
        (where(X != 0, 1, 0), [1.0, 0.0, 1.0]), (where(X <= 0, 1, 0), [1.0, 1.0, 0.0]),
        (narrow(element_index()), [0.0, 1.0, 2.0]), (sum([X, X]), [-2.0, 0.0, 4.0]), (shifted(X, X * 0.5), [-1.5, 0.0, 3.0]),
        (where(True, X, 5.0), [-1.0, 0.0, 2.0]), (where(np.bool_(False), X, 5.0), [5.0, 5.0, 5.0]),
        (X * np.float32(2) + np.int64(1), [-1.0, 1.0, 5.0]), (np.float64(2) * X, [-2.0, 0.0, 4.0]),
        (along_rows(np.array([3.0])) + X, [2.0, 3.0, 5.0]), (along_columns(np.array([3.0])) + X, [2.0, 3.0, 5.0]),
    ],
)  # fmt: skip
def test_operations_mean_what_they_say(formula: Sym, wanted: list[float]) -> None:
    assert evaluate(formula, [-1.0, 0.0, 2.0]) == pytest.approx(wanted, abs=0)


def test_zero_change_keeps_the_sign_of_zero() -> None:
    found = evaluate(shifted(X, Y), [-0.0, -0.0, 1.0], [0.0, 1.0, 0.0])
    assert [math.copysign(1, value) for value in found] == [-1, 1, 1] and found == [0, 1, 1]


def test_rows_and_columns_are_places_in_the_tensor() -> None:
    zeros = np.zeros(12)  # a tensor of shape (2, 3, 2)
    rows = evaluate(along_rows(np.arange(6.0)) + X, zeros, shape=(2, 6))
    columns = evaluate(along_columns(np.arange(6.0)) + X, zeros, shape=(2, 6))
    assert rows == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert columns == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]


MISUSES: dict[str, tuple[Callable[[], Any], str]] = {
    "if": (lambda: 1 if X > 0 else 2, "where(condition, a, b) instead of if"),
    "and": (lambda: (X > 0) and (Y > 0), "instead of if"),
    "max": (lambda: max(X, Y), "instead of if"),
    "truth plus number": (lambda: (X > 0) + 1, "on a truth value; use where"),
    "truth times tensor": (lambda: X * (Y > 0), "on a truth value; use where"),
    "minus truth": (lambda: -(X > 0), "on a truth value; use where"),
    "abs of truth": (lambda: abs(X > 0), "on a truth value; use where"),
    "root of truth": (lambda: sqrt(X > 0), "on a truth value; use where"),
    "wide truth": (lambda: wide(X > 0), "where(condition, 1.0, 0.0)"),
    "not a number": (lambda: ~X, "needs a truth value; compare first"),
    "logic on numbers": (lambda: X & Y, "two truth values; compare first"),
    "logic with python": (lambda: (X > 0) | True, "two truth values; compare first"),
    "number as condition": (lambda: where(X, 1, 2), "where(x > 0, a, b)"),
    "array": (lambda: X + np.ones(3), "along_rows(...)/along_columns(...)"),
    "array first": (lambda: np.ones(3) * X, "along_rows(...)/along_columns(...)"),
    "text": (lambda: X + "1", "cannot use str"),
    "none": (lambda: where(X > 0, None, X), "cannot use NoneType"),
    "math": (lambda: math.sqrt(X), "instead of those of math"),
    "float": (lambda: float(X), "no value while the formula is traced"),
    "power": (lambda: X**2, "write x * x"),
    "wide top": (lambda: Top(wide(abs(X)), 0.5), "leave out wide"),
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_is_answered_with_advice(misuse: str) -> None:
    act, advice = MISUSES[misuse]
    with pytest.raises(MethodError) as found:
        act()
    assert advice in str(found.value)


@pytest.mark.parametrize(
    ("cut", "wanted"),
    [
        (Cut(2.0), [2, 0, 3, 2, 2]), (Cut(2.0, -1.0), [0, 0, 3, 0, 0]), (Cut(2.0, 2), [2, 0, 3, 0, 0]),
        (Cut(2.0, 3), [2, 0, 3, 2, 0]), (KEEP_ALL, [2, 1, 3, 2, 2]), (KEEP_NONE, [0, 0, 0, 0, 0]), (Cut(0.0, 1), [2, 1, 3, 2, 2]),
    ],
)  # fmt: skip
def test_cuts_keep_what_is_above_and_ties_up_to_an_index(cut: Cut, wanted: list[float]) -> None:
    program = Program.of([keep_top(X, cut)])
    values = np.array([2.0, 1.0, 3.0, 2.0, 2.0])
    for acc in (np.float32, np.float64):
        found = np.zeros(5)
        for start, size, settled in program.pieces(0, 5, np.dtype(acc)):
            block = Block([values[start : start + size]], ("F64",), size, Grid(start))
            NumpyBackend().combine(settled, block, np.dtype(acc), found[start : start + size], "F64")
        assert found.tolist() == wanted


def test_pieces_of_a_block_end_where_ties_end() -> None:
    program = Program.of([where(above_cut(X, 1.0, 10.0), X, 0.0) + where(above_cut(Y, 1.0, 99.0), Y, 0.0)])
    sizes = [(start, size) for start, size, _ in program.pieces(8, 20, np.dtype(np.float32))]
    assert sizes == [(8, 3), (11, 17)]
    assert len(program.pieces(100, 20, np.dtype(np.float32))) == 1


def test_formulas_that_land_on_ties_are_told_by_their_common_denominator() -> None:
    for even in (0.3, 0.5, 0.25, 0.125, 0.1, 1.0, 1 / 6):
        assert Program.of([X * even + Y * (1 - even)]).lands_on_ties, even
    for odd in (0.2, 0.4, 0.8, 1 / 3, 1 / 7, 0.04, 0.05, 0.45, 0.37):
        assert not Program.of([X * odd + Y * (1 - odd)]).lands_on_ties, odd
    assert Program.of([X * 0.2 + Y * 0.5]).lands_on_ties
    assert Program.of([where(Y > 0.123456789, X * 0.5, 0.0)]).lands_on_ties, "a threshold is no factor"
    assert not Program.of([X * 0.7390851332]).lands_on_ties
    assert not Program.of([X * along_rows(np.ones(3))]).lands_on_ties
