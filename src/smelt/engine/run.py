"""One output tensor while it is made: its inputs, its formula, its statistics, block by block."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from smelt.core.errors import MethodError, SmeltError
from smelt.core.method import MethodSpec
from smelt.engine.crew import Crew
from smelt.engine.express import BATCH, Express
from smelt.engine.feeds import Feed, Scratch
from smelt.numerics.blocks import Backend, Block, Grid
from smelt.numerics.expr import Program, Sym
from smelt.numerics.rounding import STORAGE
from smelt.numerics.stats import TensorInfo


class TensorRun:
    """A method applied to one tensor of every model. Input 0 is the base when the method has one."""

    def __init__(
        self, spec: MethodSpec, info: TensorInfo, base: Feed | None, models: Sequence[Feed], params: dict[str, Any], *,
        dtype: str, acc: np.dtype, backend: Backend, layer: Any = None,
    ) -> None:  # fmt: skip
        self.spec, self.info, self.params = spec, info, params
        self.feeds: list[Feed] = [*([base] if base is not None else []), *models]
        self.dtypes = tuple(feed.dtype for feed in self.feeds)
        self.dtype, self.acc, self.backend, self.layer = dtype, acc, backend, layer
        symbols = [Sym.input(position) for position in range(len(self.feeds))]
        self.base = symbols[0] if base is not None else None
        self.models = symbols[1:] if base is not None else symbols
        self.stats: Any = info
        self._program: Program | None = None

    def start_measuring(self) -> Generator[Any, Any, Any] | None:
        """The method's measure generator, or None when it needs no statistics."""
        return start_measuring(self.spec, self.base, self.models, self.info, self.params)

    @property
    def program(self) -> Program:
        """The traced formula, once the statistics are known."""
        if self._program is None:
            with np.errstate(all="ignore"):
                self._program = Program.of(
                    [self.spec.combine(self.base, self.models, self.stats, **self.params)]
                )
        return self._program

    def grid(self, start: int) -> Grid:
        """Where a block starts within the tensor's rows and columns."""
        shape = self.info.shape or (1,)
        return Grid(start, max(shape[-1], 1), max(prod(shape[1:]), 1))

    def block(
        self, programs: Program | Sequence[Program], start: int, size: int, scratch: Scratch, depth: Any = 0
    ) -> Block:
        """The inputs that a program reads, or several together, loaded."""
        wanted: set[int] = set()
        for program in (programs,) if isinstance(programs, Program) else programs:
            self._check_tables(program)
            wanted.update(program.inputs)
        raws: list[np.ndarray | None] = [None] * len(self.feeds)
        for position in sorted(wanted):
            raws[position] = self.feeds[position].load(start, size, scratch, (depth, position))
        return Block(raws, self.dtypes, size, self.grid(start))

    def _check_tables(self, program: Program) -> None:
        """Coefficients along rows or columns must be as many as the tensor has: compiled loops do not ask."""
        grid, numel = self.grid(0), self.info.numel
        wrong = [table.size for table in program.rows if table.size < numel // grid.row_length]
        wrong += [table.size for table in program.cols if numel and table.size < grid.column_length]
        if wrong:
            raise MethodError(
                f"{self.spec.name} gave {wrong[0]} coefficients along an axis",
                expected=f"{numel // grid.row_length} for rows, {grid.column_length} for columns",
            )

    def combine(self, start: int, size: int, scratch: Scratch, slot: Any, depth: int = 0) -> np.ndarray:
        """Elements of the result in their stored form."""
        block = self.block(self.program, start, size, scratch, depth)
        out = scratch.bytes(slot, size * STORAGE[self.dtype].itemsize).view(STORAGE[self.dtype])
        for piece, program, at in self._pieces(self.program, block):
            self.backend.combine(program, piece, self.acc, out[at : at + piece.count], self.dtype)
        return out

    def _pieces(self, program: Program, block: Block) -> Iterator[tuple[Block, Program, int]]:
        """The block cut where a threshold's ties end, with the program for each piece and its offset."""
        start = block.grid.start
        for begin, size, settled in program.pieces(start, block.count, self.acc):
            at = begin - start
            if size == block.count:
                yield block, settled, 0
                continue
            raws = [raw if raw is None else raw[at : at + size] for raw in block.inputs]
            yield Block(raws, block.dtypes, size, self.grid(begin)), settled, at

    def sums(self, program: Program, by_row: bool, crew: Crew) -> Any:
        """float64 sums of a program's outputs over the tensor, or over each row."""

        def work(start: int, size: int, scratch: Scratch) -> tuple[np.ndarray, np.ndarray]:
            values, rows = [], []
            for piece, settled, _ in self._pieces(program, self.block(program, start, size, scratch)):
                cuts = piece.grid.segments(piece.count, by_row or settled.by_row)
                values.append(self.backend.sums(settled, piece, self.acc, cuts))
                rows.append((piece.grid.start + cuts[:-1]) // piece.grid.row_length if by_row else cuts[:-1])
            return np.concatenate(values), np.concatenate(rows)

        results = self._each(program, by_row, crew, work)
        parts = np.concatenate([values for values, _ in results])
        if not by_row:
            return np.add.reduce(parts, axis=0)
        rows = np.concatenate([rows for _, rows in results])
        if not rows.size:
            return np.zeros((len(program.outputs), 0))
        firsts = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
        return np.ascontiguousarray(np.add.reduceat(parts, firsts, axis=0).T)

    def _each(
        self, program: Program, by_row: bool, crew: Crew, work: Callable[[int, int, Scratch], Any]
    ) -> list[Any]:
        """``work`` on every block, many blocks at once where that gives the same."""
        numel = self.info.numel
        fast = None
        if self.backend.name == "numba" and not by_row and not program.by_row:
            fast = Express.of(self.feeds, program.inputs, None, numel, self)
        if fast is None:
            return crew.each_block(numel, work)

        def quick(start: int, stop: int, scratch: Scratch) -> tuple[int, Any]:
            reached, values = fast.sums(program, start, stop, scratch)
            return reached, (values, np.arange(len(values)))

        return crew.each_batch(numel, quick, work, BATCH)

    def column_sums(self, program: Program, crew: Crew) -> np.ndarray:
        """float64 sums along dimension 0, added strictly in order."""
        out = np.zeros((len(program.outputs), self.grid(0).column_length))
        for start, size in crew.spans(self.info.numel):
            for piece, settled, _ in self._pieces(program, self.block(program, start, size, crew.scratch())):
                self.backend.column_sums(settled, piece, self.acc, out)
        return out


def start_measuring(
    spec: MethodSpec, base: Sym | None, models: Sequence[Sym], info: TensorInfo, params: Mapping[str, Any]
) -> Generator[Any, Any, Any] | None:
    """The measure generator of a method with the parameters it takes, or None when there is none."""
    if spec.measure is None:
        return None
    wanted = inspect.signature(spec.measure).parameters
    takes_all = any(item.kind is inspect.Parameter.VAR_KEYWORD for item in wanted.values())
    chosen = {name: value for name, value in params.items() if takes_all or name in wanted}
    return spec.measure(base, models, info, **chosen)


class NestedFeed:
    """Another merge as an input, evaluated block by block; nothing of it is ever stored."""

    def __init__(self, run: TensorRun) -> None:
        self.run, self.dtype = run, run.dtype

    def load(self, start: int, count: int, scratch: Scratch, slot: Any) -> np.ndarray:
        """Elements of the inner merge."""
        return self.run.combine(start, count, scratch, ("nested", slot), depth=slot)


def add_context(error: SmeltError, where: str) -> SmeltError:
    """The same error, saying for which tensor it was met."""
    from dataclasses import replace

    error.problems = tuple(replace(item, where=item.where or where) for item in error.problems)
    error.args = ("\n".join(map(str, error.problems)),)
    return error
