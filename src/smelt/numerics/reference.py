"""The plain way to run a program: one numpy or torch operation after another. Oracle, small tensors, GPUs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from smelt.numerics.blocks import LANES, Block
from smelt.numerics.counter import uniform_24
from smelt.numerics.expr import COMPARISONS, Program
from smelt.numerics.rounding import decode, encode, has_nonfinite, near_boundary

_BINARY = {
    "add": "__add__", "sub": "__sub__", "mul": "__mul__", "div": "__truediv__",
    "lt": "__lt__", "le": "__le__", "gt": "__gt__", "ge": "__ge__", "eq": "__eq__", "ne": "__ne__",
    "and": "__and__", "or": "__or__",
}  # fmt: skip

#: operations whose results follow the accumulation dtype even where numbers are computed in float64
DECISIONS = COMPARISONS | {"and", "or", "not", "sign"}


class NumpyLeaves:
    """Leaves of a program over one block as numpy arrays of the accumulation dtype."""

    def __init__(self, program: Program, block: Block, acc: np.dtype) -> None:
        self.program, self.block, self.acc = program, block, acc
        self.xp: Any = np

    def indices(self) -> Any:
        """Element indices within the tensor, int64."""
        return self.block.grid.start + np.arange(self.block.count, dtype=np.int64)

    def draws(self, key: int) -> Any:
        """24 random bits per element."""
        return uniform_24(self.indices(), key)

    def to(self, values: Any, kind: str) -> Any:
        """Values in the dtype of a kind."""
        return np.asarray(values).astype(np.float64 if kind == "wide" else self.acc, copy=False)

    def input(self, position: int) -> Any:
        """One decoded input."""
        raw = self.block.inputs[position]
        assert raw is not None
        return decode(raw[: self.block.count], self.block.dtypes[position], self.acc)

    def table(self, values: np.ndarray, positions: Any) -> Any:
        """Coefficients looked up per element."""
        return self.to(values[positions], "num")


def interpret(leaves: NumpyLeaves) -> list[Any]:
    """Run the program; one array (or scalar) per output."""
    values = _values(leaves)
    return [values[position] for position in leaves.program.outputs]


def interpret_exactly(leaves: NumpyLeaves, wide_leaves: NumpyLeaves) -> tuple[Any, Any]:
    """Output 0 in the accumulation dtype, and with every number in float64; truth values and signs are those of
    the accumulation dtype both times, as statistics have seen them."""
    program = leaves.program
    plain = _values(leaves)
    decided = {
        position: value
        for position, ((op, *_), value) in enumerate(zip(program.code, plain, strict=True))
        if op in DECISIONS
    }
    return plain[program.outputs[0]], _values(wide_leaves, decided)[program.outputs[0]]


def exact_only_near_boundaries(program: Program, acc: np.dtype, dtype: str) -> bool:
    """Whether a combine trusts float32 results except those within a hair of a rounding boundary.

    Not where results often stand on the boundary itself: computing everything in float64 is faster then.
    """
    return acc == np.float32 and dtype == "BF16" and not program.lands_on_ties


def _values(leaves: NumpyLeaves, decided: Mapping[int, Any] = MappingProxyType({})) -> list[Any]:
    """The value of every operation; those in ``decided`` are taken as they are."""
    program, grid = leaves.program, leaves.block.grid
    values: list[Any] = []
    for position, (op, *args) in enumerate(program.code):
        if position in decided:
            values.append(decided[position] if op != "sign" else leaves.to(decided[position], "num"))
        else:
            values.append(_step(op, args, values, leaves, program, grid))
    return values


def _step(
    op: str, args: list[Any], values: list[Any], leaves: NumpyLeaves, program: Program, grid: Any
) -> Any:
    match op:
        case "input":
            return leaves.input(args[0])
        case "const":
            return leaves.to(program.consts[args[0]], "num")
        case "row":
            return leaves.table(program.rows[args[0]], leaves.indices() // grid.row_length)
        case "col":
            return leaves.table(program.cols[args[0]], leaves.indices() % grid.column_length)
        case "uniform":
            return leaves.to(leaves.draws(program.keys[args[0]]), "num") * leaves.to(2.0**-24, "num")
        case "index":
            return leaves.to(leaves.indices(), "wide")
        case "wide":
            code = program.code[args[0]]
            return leaves.to(program.consts[code[1]] if code[0] == "const" else values[args[0]], "wide")
        case "narrow":
            return leaves.to(values[args[0]], "num")
        case "where":
            return leaves.xp.where(*(values[argument] for argument in args))
        case "neg":
            return -values[args[0]]
        case "not":
            return ~values[args[0]]
        case "abs" | "sqrt" | "sign":
            return getattr(leaves.xp, op)(values[args[0]])
        case _:
            left, right = values[args[0]], values[args[1]]
            return getattr(left, _BINARY[op])(right)


class NumpyBackend:
    """Programs over numpy arrays, one operation at a time."""

    name = "numpy"

    def _outputs(self, program: Program, block: Block, acc: np.dtype) -> list[np.ndarray]:
        with np.errstate(all="ignore"):
            results = interpret(NumpyLeaves(program, block, acc))
        return [np.broadcast_to(np.asarray(result), (block.count,)) for result in results]

    def combine(self, program: Program, block: Block, acc: np.dtype, out: np.ndarray, dtype: str) -> None:
        leaves, exact_leaves = (
            NumpyLeaves(program, block, acc),
            NumpyLeaves(program, block, np.dtype(np.float64)),
        )
        with np.errstate(all="ignore"):
            plain, exact = interpret_exactly(leaves, exact_leaves)
            stored = encode(np.asarray(exact, np.float64), dtype)
            if exact_only_near_boundaries(program, acc, dtype):
                single = np.asarray(plain, np.float32)
                stored = np.where(near_boundary(single), stored, encode(single, dtype))
        out[: block.count] = stored

    def sums(self, program: Program, block: Block, acc: np.dtype, cuts: np.ndarray) -> np.ndarray:
        outputs = self._outputs(program, block, acc)
        return segment_sums(outputs, cuts)

    def column_sums(self, program: Program, block: Block, acc: np.dtype, out: np.ndarray) -> None:
        add_columns(self._outputs(program, block, acc), block, out)

    def nonfinite(self, raw: np.ndarray, dtype: str) -> bool:
        return has_nonfinite(raw, dtype)

    def patterns(self, program: Program, block: Block, acc: np.dtype) -> np.ndarray:
        """Bit patterns of output 0, which must not be negative, as uint64."""
        (values,) = self._outputs(program, block, acc)
        unsigned = np.uint32 if values.dtype == np.float32 else np.uint64
        return np.ascontiguousarray(values).view(unsigned).astype(np.uint64)

    def bracket(
        self, program: Program, block: Block, acc: np.dtype, low: int, high: int, shift: int, bins: int
    ) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        patterns = self.patterns(program, block, acc)
        inside = patterns[(patterns >= np.uint64(low)) & (patterns <= np.uint64(high))]
        where = ((inside - np.uint64(low)) >> np.uint64(shift)).astype(np.int64)
        counts = np.bincount(where, minlength=bins).astype(np.int64)
        least = np.full(bins, np.iinfo(np.uint64).max, np.uint64)
        most = np.zeros(bins, np.uint64)
        np.minimum.at(least, where, inside)
        np.maximum.at(most, where, inside)
        return int((patterns > np.uint64(high)).sum()), counts, least, most

    def collect(
        self, program: Program, block: Block, acc: np.dtype, low: int, high: int
    ) -> tuple[int, np.ndarray]:
        patterns = self.patterns(program, block, acc)
        inside = (patterns >= np.uint64(low)) & (patterns <= np.uint64(high))
        return int((patterns > np.uint64(high)).sum()), patterns[inside]


def add_columns(outputs: list[np.ndarray], block: Block, out: np.ndarray) -> None:
    """Add every output to its row of ``out``, one slice of dimension 0 after another."""
    length = block.grid.column_length
    for row, values in zip(out, outputs, strict=True):
        position, start = 0, block.grid.start % length
        while position < block.count:
            size = min(length - start, block.count - position)
            row[start : start + size] += values[position : position + size].astype(np.float64)
            position, start = position + size, 0


def segment_sums(outputs: list[np.ndarray], cuts: np.ndarray) -> np.ndarray:
    """Sums per segment in the fixed order: 64 interleaved lanes, folded by halves."""
    sums = np.zeros((len(cuts) - 1, len(outputs)))
    for column, values in enumerate(outputs):
        wide = values.astype(np.float64)
        for segment in range(len(cuts) - 1):
            sums[segment, column] = _lane_sum(wide[cuts[segment] : cuts[segment + 1]])
    return sums


def _lane_sum(values: np.ndarray) -> float:
    whole = values.size // LANES * LANES
    lanes = np.zeros(LANES)
    if whole:
        lanes += np.add.reduce(values[:whole].reshape(-1, LANES), axis=0)
    lanes[: values.size - whole] += values[whole:]
    while lanes.size > 1:
        half = lanes.size // 2
        lanes = lanes[:half] + lanes[half:]
    return float(lanes[0])
