"""Many blocks of one tensor in one compiled call: where every input and the output lie densely in files and one
formula holds for all of them, Python is asked once per some MiB instead of several times per block.

Everything it cannot do it leaves where it stands: the blocks from there on are done one by one, the plain way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from smelt.engine.feeds import Feed, FileFeed, Scratch
from smelt.numerics.blocks import GRAIN
from smelt.numerics.expr import Program

if TYPE_CHECKING:
    from smelt.checkpoint.swift import Port
    from smelt.engine.run import TensorRun

#: elements (or bytes, of what is only copied) handed over at once, and looked at together: a few inputs and an
#: output of so many stay in a core's own cache while they are read, checked and merged
BATCH, COPIED, TOGETHER = 1 << 22, 1 << 23, GRAIN
#: so many of them are written at once: the kernel then keeps a file in large pages
WRITTEN = 16


@dataclass(frozen=True)
class Express:
    """Blocks of one tensor. ``ports`` are the inputs in the order of ``positions``, ``out`` the output's place."""

    ports: Sequence[Port]
    positions: tuple[int, ...]
    out: Port | None
    block: int
    limit: int
    run: TensorRun | None = None

    @staticmethod
    def of(
        feeds: Sequence[Feed], positions: Sequence[int], out: Port | None, count: int, run: TensorRun | None = None
    ) -> Express | None:  # fmt: skip
        """None where some input is no dense tensor of a file, or blocks do not begin at whole pieces."""
        ports = []
        for position in positions:
            feed = feeds[position]
            port = feed.port() if isinstance(feed, FileFeed) else None
            if port is None:
                return None
            ports.append(port)
        everyone = [*ports, *([out] if out is not None else [])]
        if not ports or not all(port.fits(TOGETHER) for port in everyone):
            return None
        limit = min(port.limit(count, TOGETHER) for port in everyone)
        return Express(ports, tuple(positions), out, TOGETHER, limit, run)

    def combine(self, start: int, stop: int, scratch: Scratch) -> int:
        """Make elements of the output; how far it came."""
        assert self.run is not None
        return self._go(self.run.program, "combine", start, stop, scratch)[0]

    def copy(self, start: int, stop: int, scratch: Scratch) -> int:
        """Copy the bytes of the only input; how far it came."""
        from smelt.checkpoint.swift import carry

        stop = min(stop, self.limit)
        if start >= stop:
            return start
        buffers = [
            scratch.bytes(("express", 0), self.block),
            scratch.bytes(("express", "out"), WRITTEN * self.block),
        ]
        return carry(self.ports, self.out, None, self.block, start, stop, buffers)

    def sums(self, program: Program, start: int, stop: int, scratch: Scratch) -> tuple[int, np.ndarray]:
        """Sums of a program's outputs over every grain; how far it came."""
        return self._go(program, "sums", start, stop, scratch)

    def _go(
        self, program: Program, kind: str, start: int, stop: int, scratch: Scratch
    ) -> tuple[int, np.ndarray]:
        from smelt.checkpoint.swift import Work, carry

        run, stop = self.run, min(stop, self.limit)
        assert run is not None
        nothing = (start, np.zeros((0, len(program.outputs))))
        if start >= stop:
            return nothing
        pieces = program.pieces(start, stop - start, run.acc)
        settled = pieces[0][2]
        if len(pieces) > 1 or settled.inputs != self.positions or (kind == "sums" and settled.by_row):
            return nothing
        backend: Any = run.backend
        kernel = backend.kernel(kind, settled, run.dtypes, run.acc, run.dtype if kind == "combine" else "")
        grid = run.grid(start)
        work = Work(kernel.address, backend.tables(settled), grid.row_length, grid.column_length)
        sums = np.empty((-(-(stop - start) // GRAIN), len(program.outputs))) if kind == "sums" else None
        buffers = [scratch.bytes(("express", n), self.block * port.item) for n, port in enumerate(self.ports)]
        if self.out is not None:
            buffers.append(scratch.bytes(("express", "out"), WRITTEN * self.block * self.out.item))
        reached = carry(self.ports, self.out, work, self.block, start, stop, buffers, sums)
        return reached, nothing[1] if sums is None else sums[: -(-(reached - start) // GRAIN)]
