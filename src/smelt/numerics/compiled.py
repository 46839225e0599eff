"""Programs as fused loops: source is generated once per structure, compiled by Numba, cached on disk.

A loop holds one scalar statement per operation and reads and writes stored elements directly, so a whole
three-model merge formula is one pass over cache-sized blocks, vectorised by LLVM. Results equal
``reference`` bit for bit: same operations, same order, no contraction.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from hashlib import blake2b
from importlib import util
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np

from smelt._version import __version__
from smelt.core.jit import quick_loading
from smelt.numerics.blocks import Block
from smelt.numerics.codegen import Flavour, generate
from smelt.numerics.expr import Program
from smelt.numerics.reference import exact_only_near_boundaries
from smelt.numerics.rounding import has_nonfinite

#: kernels inline the conversions of ``bits``, so a change there must rename them
_BITS = (Path(__file__).parent / "bits.py").read_bytes() + __version__.encode()


def cache_folder() -> Path:
    """Where compiled kernels are kept: $SMELT_CACHE, else the user's cache folder."""
    chosen = os.environ.get("SMELT_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "smelt"


class CompiledBackend:
    """Programs over blocks through compiled loops."""

    name = "numba"

    def __init__(self) -> None:
        self._kernels: dict[Any, Callable[..., Any]] = {}
        self._lock = threading.Lock()
        self._local = threading.local()

    def _kernel(
        self, kind: str, program: Program, block: Block, acc: np.dtype, out: str = ""
    ) -> Callable[..., Any]:
        """The loop for a program; found again by a short key, since hashing a whole formula takes time."""
        key = (kind, block.dtypes, acc.char, out)
        kernel = program.kernels.get(key)
        if kernel is None:
            kernel = program.kernels[key] = self._load(self._flavour(kind, program, block, acc, out))
        return kernel

    def _load(self, flavour: Flavour) -> Callable[..., Any]:
        with self._lock:
            kernel = self._kernels.get(flavour)
            if kernel is None:
                kernel = self._kernels[flavour] = load_kernel(generate(flavour))
            return kernel

    def _arguments(self, program: Program, block: Block) -> tuple[Any, ...]:
        grid = block.grid
        assert not program.keys or not block.count or grid.start >> 32 == (grid.start + block.count - 1) >> 32
        return (
            *(block.inputs[position] for position in program.inputs),
            program.const_array, program.key_array, *program.rows, *program.cols,
            block.count, grid.start, grid.row_length, grid.column_length,
        )  # fmt: skip

    def _flavour(self, kind: str, program: Program, block: Block, acc: np.dtype, out: str = "") -> Flavour:
        dtypes = tuple(block.dtypes[position] for position in program.inputs)
        near = exact_only_near_boundaries(program, acc, out)
        return Flavour(
            kind,
            program.structure,
            dtypes,
            program.inputs,
            acc.name,
            out,
            len(program.rows),
            len(program.cols),
            near,
        )

    def combine(self, program: Program, block: Block, acc: np.dtype, out: np.ndarray, dtype: str) -> None:
        self._kernel("combine", program, block, acc, dtype)(out, *self._arguments(program, block))

    def sums(self, program: Program, block: Block, acc: np.dtype, cuts: np.ndarray) -> np.ndarray:
        out = np.zeros((len(cuts) - 1, len(program.outputs)))
        self._kernel("sums", program, block, acc)(out, cuts, *self._arguments(program, block))
        return out

    def column_sums(self, program: Program, block: Block, acc: np.dtype, out: np.ndarray) -> None:
        self._kernel("columns", program, block, acc)(out, *self._arguments(program, block))

    def bracket(
        self, program: Program, block: Block, acc: np.dtype, low: int, high: int, shift: int, bins: int
    ) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        unsigned = np.uint32 if acc == np.float32 else np.uint64
        if low == high:  # a guess to be confirmed: two counts, all in vector lanes
            pair = np.zeros(2, np.int64)
            self._kernel("count", program, block, acc)(pair, unsigned(low), *self._arguments(program, block))
            at = np.array([low], unsigned)
            return int(pair[0]), pair[1:], at, at
        counts = np.zeros(bins, np.int64)
        least = np.full(bins, np.iinfo(unsigned).max, unsigned)
        most = np.zeros(bins, unsigned)
        kernel = self._kernel("bracket", program, block, acc)
        above = kernel(
            counts,
            least,
            most,
            unsigned(low),
            unsigned(high),
            unsigned(shift),
            *self._arguments(program, block),
        )
        return int(above), counts, least, most

    def collect(
        self, program: Program, block: Block, acc: np.dtype, low: int, high: int
    ) -> tuple[int, np.ndarray]:
        unsigned = np.uint32 if acc == np.float32 else np.uint64
        found = self._spare(block.count + 1, unsigned)  # one more: the loop writes before it decides
        above = np.zeros(1, np.int64)
        kernel = self._kernel("collect", program, block, acc)
        size = kernel(found, above, unsigned(low), unsigned(high), *self._arguments(program, block))
        return int(above[0]), found[:size].copy()

    def _spare(self, count: int, dtype: type) -> np.ndarray:
        """A buffer of the calling thread, kept between calls: fresh pages cost more than the loop."""
        buffer = getattr(self._local, "buffer", None)
        if buffer is None or buffer.nbytes < 8 * count:
            buffer = self._local.buffer = np.empty(count, np.uint64)
        return buffer.view(dtype)[:count]

    def nonfinite(self, raw: np.ndarray, dtype: str) -> bool:
        return has_nonfinite(raw, dtype)


def load_kernel(source: str) -> Callable[..., Any]:
    """Import generated source from the kernel cache, so that Numba can keep the machine code beside it."""
    name = "k_" + blake2b(_BITS + source.encode(), digest_size=12).hexdigest()
    for folder in (cache_folder() / "kernels", Path(gettempdir()) / f"smelt-kernels-{os.getuid()}"):
        try:
            path = _store(folder, name, source)
        except OSError:
            continue
        return _import(name, path)
    namespace: dict[str, Any] = {}
    exec(source.replace("cache=True", "cache=False"), namespace)  # nowhere to write: compile for this process
    return namespace["kernel"]


def _store(folder: Path, name: str, source: str) -> Path:
    path = folder / f"{name}.py"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = folder / f".{name}.{os.getpid()}.{threading.get_ident()}"
        fresh.write_text(source)
        fresh.replace(path)
    return path


def _import(name: str, path: Path) -> Callable[..., Any]:
    full = f"smelt_kernels.{name}"
    spec = util.spec_from_file_location(full, path)
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[full] = module
    with quick_loading():
        spec.loader.exec_module(module)
    return module.kernel
