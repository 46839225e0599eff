"""One program, three backends, the same bytes: random formulas over every leaf, dtype, shape and cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from smelt.numerics.blocks import GRAIN, Backend, Block, Grid
from smelt.numerics.compiled import CompiledBackend
from smelt.numerics.expr import (
    Program,
    Sym,
    along_columns,
    along_rows,
    element_index,
    maximum,
    minimum,
    narrow,
    shifted,
    sign,
    sqrt,
    uniform,
    where,
    wide,
)  # fmt: skip
from smelt.numerics.reference import NumpyBackend
from smelt.numerics.rounding import STORAGE, accumulation, encode
from smelt.numerics.torch_backend import TorchBackend

NUMPY = NumpyBackend()
OTHERS: dict[str, Backend] = {"numba": CompiledBackend(), "torch": TorchBackend("cpu")}
SHAPES = [(301,), (23, 13), (5, 7, 9), (1, 300), (300, 1)]
#: dtypes of the inputs and of the output
DTYPES = [
    (("BF16", "BF16"), "BF16"),
    (("BF16", "F16"), "F16"),
    (("F32", "BF16"), "F32"),
    (("F64", "F32"), "BF16"),
]


class Formulas:
    """Draws formulas of a given depth from all there is."""

    def __init__(self, seed: int, shape: tuple[int, ...]) -> None:
        self.random = np.random.default_rng(seed)
        self.rows = int(np.prod(shape[:-1]))
        self.columns = int(np.prod(shape[1:]))

    def leaf(self) -> Sym:
        pick = self.random.integers(9)
        if pick < 4:
            return Sym.input(int(self.random.integers(2)))
        if pick == 4:
            return Sym.lift(float(self.random.choice([0.3, -1.5, 0.0, 2.0, float(self.random.normal())])))
        if pick == 5:
            return along_rows(self.random.normal(size=self.rows))
        if pick == 6:
            return along_columns(self.random.normal(size=self.columns))
        return uniform(int(self.random.integers(2**63))) if pick == 7 else narrow(element_index() * 0.001)

    def number(self, depth: int) -> Sym:
        if depth == 0:
            return self.leaf()
        first, second = self.number(depth - 1), self.number(depth - 1)
        choices = [
            lambda: first + second, lambda: first - second, lambda: first * second, lambda: first / (abs(second) + 0.5),
            lambda: -first, lambda: abs(first), lambda: sqrt(abs(first)), lambda: sign(first) * second,
            lambda: where(self.truth(depth - 1), first, second), lambda: minimum(first, second),
            lambda: maximum(first, 0.25), lambda: narrow(wide(first) * wide(second)), lambda: shifted(first, second),
        ]  # fmt: skip
        return choices[self.random.integers(len(choices))]()

    def truth(self, depth: int) -> Sym:
        first, second = self.number(depth), self.number(depth)
        choices = [
            lambda: first < second, lambda: first <= second, lambda: first > 0, lambda: first >= second,
            lambda: first == second, lambda: wide(first) != second,
            lambda: (first > 0) & (second > 0), lambda: (first > 0) | ~(second > 0),
        ]  # fmt: skip
        return choices[self.random.integers(len(choices))]()


def block_of(
    shape: tuple[int, ...], dtypes: tuple[str, ...], seed: int, start: int = 0, count: int | None = None
) -> Block:
    """Random stored numbers, zeros and equal ones among them."""
    random = np.random.default_rng(seed)
    size = int(np.prod(shape))
    raws = []
    for dtype in dtypes:
        values = random.normal(0, 1, size) * random.choice([0.0, 1.0, 1.0, 1e-3], size)
        raws.append(encode(values, dtype)[start : size if count is None else start + count])
    return Block(raws, dtypes, raws[0].size, Grid(start, shape[-1], int(np.prod(shape[1:]))))


def combined(backend: Backend, program: Program, block: Block, acc: np.dtype, out: str) -> np.ndarray:
    found = np.zeros(block.count, STORAGE[out])
    backend.combine(program, block, acc, found, out)
    return found


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("seed", range(24))
def test_combine(seed: int, name: str) -> None:
    shape = SHAPES[seed % len(SHAPES)]
    program = Program.of([Formulas(seed, shape).number(3)])
    dtypes, out = DTYPES[seed % len(DTYPES)]
    acc = accumulation({*dtypes, out})
    for start, count in ((0, None), (37, 211)):
        block = block_of(shape, dtypes, seed, start, count)
        wanted = combined(NUMPY, program, block, acc, out)
        assert combined(OTHERS[name], program, block, acc, out).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("seed", range(8))
def test_sums_along_everything(seed: int, name: str) -> None:
    shape = [(400, 613), (3, 50, 911)][seed % 2]
    formulas = Formulas(seed, shape)
    program = Program.of([formulas.number(2), wide(formulas.number(1)) * wide(formulas.number(1))])
    dtypes = DTYPES[seed % 4][0]
    acc = accumulation({*dtypes})
    block = block_of(shape, dtypes, seed)
    for by_row in (True, False):
        cuts = block.grid.segments(block.count, by_row or program.by_row)
        wanted = NUMPY.sums(program, block, acc, cuts)
        assert OTHERS[name].sums(program, block, acc, cuts).tobytes() == wanted.tobytes()
    found, wanted = (np.zeros((2, block.grid.column_length)) for _ in range(2))
    NUMPY.column_sums(program, block, acc, wanted)
    OTHERS[name].column_sums(program, block, acc, found)
    assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("seed", range(6))
def test_order_statistics(seed: int, name: str) -> None:
    shape = SHAPES[seed % len(SHAPES)]
    program = Program.of([abs(Formulas(seed, shape).number(2))])
    dtypes = DTYPES[seed % 4][0]
    acc = accumulation({*dtypes})
    block = block_of(shape, dtypes, seed)
    patterns = np.sort(NUMPY.collect(program, block, acc, 0, (1 << 8 * acc.itemsize) - 1)[1])
    assert patterns.size == block.count
    for low, high in (
        (int(patterns[0]), int(patterns[-1])),
        (int(patterns[50]), int(patterns[200])),
        (int(patterns[9]),) * 2,
    ):
        shift = max(0, (high - low).bit_length() - 4)
        bins = ((high - low) >> shift) + 1
        wanted = NUMPY.bracket(program, block, acc, low, high, shift, bins)
        found = OTHERS[name].bracket(program, block, acc, low, high, shift, bins)
        occupied = wanted[1] > 0
        assert found[0] == wanted[0]
        assert (found[1] == wanted[1]).all()
        assert (found[2][occupied] == wanted[2][occupied]).all() and (
            found[3][occupied] == wanted[3][occupied]
        ).all()
        above, inside = NUMPY.collect(program, block, acc, low, high)
        found_above, found_inside = OTHERS[name].collect(program, block, acc, low, high)
        assert found_above == above and (found_inside == inside).all()


@pytest.mark.parametrize("name", ["numpy", *OTHERS])
def test_nothing_in_nothing_out(name: str) -> None:
    backend = {"numpy": NUMPY, **OTHERS}[name]
    x = Sym.input(0)
    acc, block = np.dtype(np.float32), Block([np.zeros(0, np.uint16)], ("BF16",), 0, Grid(0, 3, 3))
    assert combined(backend, Program.of([x * 0.5]), block, acc, "BF16").size == 0
    assert backend.sums(Program.of([x]), block, acc, np.array([0], np.int64)).shape == (0, 1)
    assert backend.collect(Program.of([abs(x)]), block, acc, 0, 2**32 - 1)[1].size == 0
    assert backend.bracket(Program.of([abs(x)]), block, acc, 0, 2**32 - 1, 22, 1024)[0] == 0


@pytest.mark.parametrize("name", ["numpy", *OTHERS])
def test_a_constant_formula_fills_the_block(name: str) -> None:
    backend = {"numpy": NUMPY, **OTHERS}[name]
    block = Block([None], ("BF16",), 5, Grid(0))
    assert (
        combined(backend, Program.of([Sym.lift(0.5)]), block, np.dtype(np.float32), "F32").tolist()
        == [0.5] * 5
    )


@pytest.mark.parametrize("name", ["numpy", *OTHERS])
def test_sums_take_the_promised_order(name: str) -> None:
    """64 lanes, each summed from its first element to its last, folded by halves; any other order differs here."""
    values = np.random.default_rng(0).normal(0, 1, 3 * 64 + 11) * np.logspace(0, 12, 3 * 64 + 11)
    lanes = [0.0] * 64
    for i, value in enumerate(values.tolist()):
        lanes[i % 64] += value
    while len(lanes) > 1:
        lanes = [a + b for a, b in zip(lanes[: len(lanes) // 2], lanes[len(lanes) // 2 :], strict=True)]
    block = Block([values], ("F64",), values.size, Grid(0))
    backend = {"numpy": NUMPY, **OTHERS}[name]
    found = backend.sums(Program.of([Sym.input(0)]), block, np.dtype(np.float64), np.array([0, values.size]))
    assert found[0, 0] == lanes[0]
    assert found[0, 0] != values.sum()


def cuts_of(grid: Grid, count: int, by_row: bool) -> list[int]:
    return grid.segments(count, by_row).tolist()


def test_segments_end_at_grains_and_rows() -> None:
    assert cuts_of(Grid(0), 2 * GRAIN + 5, False) == [0, GRAIN, 2 * GRAIN, 2 * GRAIN + 5]
    assert cuts_of(Grid(GRAIN), GRAIN, False) == [0, GRAIN]
    assert cuts_of(Grid(4, row_length=3, column_length=3), 6, True) == [0, 2, 5, 6]
    assert cuts_of(Grid(0, row_length=1), 3, True) == [0, 1, 2, 3]
    assert cuts_of(Grid(0), 0, True) == [0]
    rows = cuts_of(Grid(GRAIN, row_length=1000, column_length=1000), GRAIN, True)
    assert {(GRAIN + at) % 1000 for at in rows[1:-1]} == {0} and rows[0] == 0 and rows[-1] == GRAIN


@pytest.mark.parametrize("name", ["numpy", *OTHERS])
def test_sums_do_not_depend_on_blocks(name: str) -> None:
    backend: Any = {"numpy": NUMPY, **OTHERS}[name]
    values = encode(np.random.default_rng(1).normal(0, 1, 3 * GRAIN + 100), "BF16")
    program = Program.of([wide(Sym.input(0)) * wide(Sym.input(0))])
    seen = set()
    for blocks in (1, 2, 3, 7):
        parts = []
        for start in range(0, values.size, blocks * GRAIN):
            raw = values[start : start + blocks * GRAIN]
            block = Block([raw], ("BF16",), raw.size, Grid(start))
            parts.append(
                backend.sums(program, block, np.dtype(np.float32), block.grid.segments(raw.size, False))
            )
        seen.add(np.concatenate(parts).tobytes())
    assert len(seen) == 1
