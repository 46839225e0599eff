"""What every backend is asked to do with one block of aligned inputs, and the shape of a block.

A block is a run of consecutive elements of one tensor; the inputs are the same run of every model. Statistics
are summed in fixed segments and fixed lanes, so a result never depends on how a tensor was cut into blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from smelt.numerics.expr import Program

#: elements of one partial sum; blocks start at multiples of it
GRAIN = 65536
#: interleaved partial sums inside a segment, folded pairwise at its end
LANES = 64


@dataclass(frozen=True, slots=True)
class Grid:
    """Where a block lies: its first element, and the tensor's rows (last dimension) and columns (rest of dim 0)."""

    start: int
    row_length: int = 1
    column_length: int = 1

    def segments(self, count: int, by_row: bool) -> np.ndarray:
        """Boundaries of the sums inside a block of ``count`` elements: grains, cut at rows too when asked.

        >>> Grid(0, row_length=3).segments(7, by_row=True).tolist()
        [0, 3, 6, 7]
        """
        end = self.start + count
        grains = np.arange(-(-(self.start + 1) // GRAIN) * GRAIN, end, GRAIN, dtype=np.int64)
        cuts = [np.array([self.start, end], np.int64), grains]
        if by_row:
            cuts.append(
                np.arange(-(-(self.start + 1) // self.row_length) * self.row_length, end, self.row_length)
            )
        return np.unique(np.concatenate(cuts)) - self.start


@dataclass(frozen=True, slots=True)
class Block:
    """Raw stored elements of every input the program reads (None where it does not), with their dtypes.

    Where a program draws random numbers a block does not cross a multiple of 2**32, where the keys change.
    """

    inputs: Sequence[np.ndarray | None]
    dtypes: tuple[str, ...]
    count: int
    grid: Grid


class Backend(Protocol):
    """Runs programs over blocks. All backends give the same numbers (GPU: within one rounding)."""

    name: str

    def combine(self, program: Program, block: Block, acc: np.dtype, out: np.ndarray, dtype: str) -> None:
        """Evaluate output 0 and store it, rounded once, as ``dtype``."""

    def sums(self, program: Program, block: Block, acc: np.dtype, cuts: np.ndarray) -> np.ndarray:
        """float64 sums of every output over each segment: [segments, outputs].

        A segment of a program with coefficients along rows or columns (``program.by_row``) lies in one row.
        """

    def column_sums(self, program: Program, block: Block, acc: np.dtype, out: np.ndarray) -> None:
        """Add every output to ``out`` [outputs, column_length], element after element."""

    def bracket(
        self, program: Program, block: Block, acc: np.dtype, low: int, high: int, shift: int, bins: int
    ) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        """Order statistics of output 0 (not negative) by bit pattern.

        Returns how many patterns are above ``high``, and for bin ``(pattern - low) >> shift`` inside the
        bracket: counts, smallest and largest pattern.
        """

    def collect(
        self, program: Program, block: Block, acc: np.dtype, low: int, high: int
    ) -> tuple[int, np.ndarray]:
        """How many patterns are above the bracket, and those inside it in element order."""

    def nonfinite(self, raw: np.ndarray, dtype: str) -> bool:
        """Whether any stored element is NaN or Inf."""
