"""Programs as fused loops: source is generated once per structure, compiled by Numba, its machine code kept on disk.

A loop holds one scalar statement per operation and reads and writes stored elements directly, so a whole
three-model merge formula is one pass over cache-sized blocks, vectorised by LLVM. Results equal
``reference`` bit for bit: same operations, same order, no contraction.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smelt.core.native import FAILED, Native, address, load
from smelt.numerics.blocks import Block
from smelt.numerics.codegen import ARGUMENTS, Flavour, generate
from smelt.numerics.expr import Program
from smelt.numerics.reference import exact_only_near_boundaries
from smelt.numerics.rounding import STORAGE, has_nonfinite

#: kernels inline the conversions of ``bits``, so a change there is another kernel
_BITS = (Path(__file__).parent / "bits.py").read_bytes()


class Tables:
    """Addresses of what a program's kernels read besides their inputs, and the arrays themselves, kept alive."""

    __slots__ = ("_kept", "addresses")

    def __init__(self, program: Program) -> None:
        rows, cols = (
            [np.ascontiguousarray(t, np.float64) for t in them] for them in (program.rows, program.cols)
        )
        pointers = [np.array([address(table) for table in them] or [0], np.int64) for them in (rows, cols)]
        tables = (program.const_array, program.key_array, *pointers)
        self._kept = (rows, cols, tables)
        self.addresses: tuple[int, int, int, int] = tuple(map(address, tables))  # type: ignore[assignment]


class CompiledBackend:
    """Programs over blocks through compiled loops."""

    name = "numba"

    def __init__(self) -> None:
        self._kernels: dict[Flavour, Native] = {}
        self._lock = threading.Lock()
        self._local = threading.local()

    def kernel(
        self, kind: str, program: Program, dtypes: Sequence[str], acc: np.dtype, out: str = ""
    ) -> Native:
        """The loop for a program; found again by a short key, since hashing a whole formula takes time."""
        key = (kind, dtypes, acc.char, out)
        kernel: Native | None = program.kernels.get(key)
        if kernel is None:
            kernel = program.kernels[key] = self._load(_flavour(kind, program, dtypes, acc, out))
        return kernel

    def tables(self, program: Program) -> tuple[int, int, int, int]:
        """Addresses of a program's constants, random keys and coefficients along rows and columns."""
        tables: Tables | None = program.kernels.get("tables")
        if tables is None:
            tables = program.kernels["tables"] = Tables(program)
        return tables.addresses

    def _load(self, flavour: Flavour) -> Native:
        with self._lock:
            kernel = self._kernels.get(flavour)
            if kernel is None:
                kernel = self._kernels[flavour] = load_kernel(generate(flavour))
            return kernel

    def _run(
        self, kind: str, program: Program, block: Block, acc: np.dtype, target: np.ndarray,
        extra: Sequence[int] = (), out: str = "",
    ) -> int:  # fmt: skip
        """Call a loop on one block; ``extra`` are further words for it."""
        grid, places = block.grid, []
        assert not program.keys or not block.count or grid.start >> 32 == (grid.start + block.count - 1) >> 32
        for position in program.inputs:
            raw = block.inputs[position]
            assert (
                raw is not None and raw.dtype == STORAGE[block.dtypes[position]] and raw.size >= block.count
            )
            assert raw.flags.c_contiguous and target.flags.c_contiguous
            places.append(address(raw))
        inputs, words = np.array(places or [0], np.int64), np.array(extra or [0], np.int64)
        answer = self.kernel(kind, program, block.dtypes, acc, out).call(
            address(inputs), *self.tables(program), block.count, grid.start, grid.row_length, grid.column_length,
            address(target), address(words),
        )  # fmt: skip
        if answer == FAILED:
            raise RuntimeError(f"a compiled {kind} loop failed: this is a defect of smelt")
        return answer

    def combine(self, program: Program, block: Block, acc: np.dtype, out: np.ndarray, dtype: str) -> None:
        assert out.dtype == STORAGE[dtype] and out.size >= block.count
        self._run("combine", program, block, acc, out, out=dtype)

    def sums(self, program: Program, block: Block, acc: np.dtype, cuts: np.ndarray) -> np.ndarray:
        out = np.zeros((len(cuts) - 1, len(program.outputs)))
        cuts = np.ascontiguousarray(cuts, np.int64)
        self._run("sums", program, block, acc, out, (address(cuts), len(cuts)))
        return out

    def column_sums(self, program: Program, block: Block, acc: np.dtype, out: np.ndarray) -> None:
        assert out.dtype == np.float64 and out.shape == (len(program.outputs), block.grid.column_length)
        self._run("columns", program, block, acc, out)

    def bracket(
        self, program: Program, block: Block, acc: np.dtype, low: int, high: int, shift: int, bins: int
    ) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        unsigned = np.uint32 if acc == np.float32 else np.uint64
        if low == high:  # a guess to be confirmed: two counts, all in vector lanes
            pair = np.zeros(2, np.int64)
            self._run("count", program, block, acc, pair, (_word(low),))
            at = np.array([low], unsigned)
            return int(pair[0]), pair[1:], at, at
        counts = np.zeros(bins, np.int64)
        least = np.full(bins, np.iinfo(unsigned).max, unsigned)
        most = np.zeros(bins, unsigned)
        extra = (address(least), address(most), _word(low), _word(high), shift)
        return self._run("bracket", program, block, acc, counts, extra), counts, least, most

    def collect(
        self, program: Program, block: Block, acc: np.dtype, low: int, high: int
    ) -> tuple[int, np.ndarray]:
        unsigned = np.uint32 if acc == np.float32 else np.uint64
        found = self._spare(block.count + 1, unsigned)  # one more: the loop writes before it decides
        above = np.zeros(1, np.int64)
        size = self._run("collect", program, block, acc, found, (address(above), _word(low), _word(high)))
        return int(above[0]), found[:size].copy()

    def _spare(self, count: int, dtype: type) -> np.ndarray:
        """A buffer of the calling thread, kept between calls: fresh pages cost more than the loop."""
        buffer = getattr(self._local, "buffer", None)
        if buffer is None or buffer.nbytes < 8 * count:
            buffer = self._local.buffer = np.empty(count, np.uint64)
        return buffer.view(dtype)[:count]

    def nonfinite(self, raw: np.ndarray, dtype: str) -> bool:
        return has_nonfinite(raw, dtype)


def _word(pattern: int) -> int:
    """64 bits as the signed number that they also are."""
    return pattern - (1 << 64) if pattern >> 63 else pattern


def _flavour(kind: str, program: Program, dtypes: Sequence[str], acc: np.dtype, out: str) -> Flavour:
    return Flavour(
        kind,
        program.structure,
        tuple(dtypes[position] for position in program.inputs),
        program.inputs,
        acc.name,
        out,
        len(program.rows),
        len(program.cols),
        exact_only_near_boundaries(program, acc, out),
    )


def load_kernel(source: str) -> Native:
    """Generated source as a compiled function."""

    def make() -> Callable[..., Any]:
        from smelt.core.native import intrinsics
        from smelt.numerics import bits

        namespace = {**vars(bits), **vars(intrinsics()), "np": np}
        exec(source, namespace)
        kernel: Callable[..., Any] = namespace["kernel"]
        return kernel

    return load(_BITS + source.encode(), len(ARGUMENTS), make)
