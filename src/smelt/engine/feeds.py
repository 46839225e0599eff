"""Where blocks come from: a file, or another merge evaluated on the way; buffers are per thread and reused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from smelt.checkpoint import TensorDigest
from smelt.core.errors import NonFiniteError
from smelt.core.types import ITEMSIZE, TensorMeta, TensorSource
from smelt.numerics.rounding import STORAGE, decode


class Scratch:
    """Buffers of one thread, by slot; they only ever grow."""

    def __init__(self) -> None:
        self._buffers: dict[Any, np.ndarray] = {}

    def bytes(self, slot: Any, size: int) -> np.ndarray:
        """A uint8 buffer of exactly ``size`` bytes."""
        buffer = self._buffers.get(slot)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[slot] = np.empty(max(size, 64), np.uint8)
        return buffer[:size]


class Feed(Protocol):
    """A tensor that can be read block by block in its stored form."""

    dtype: str

    def load(self, start: int, count: int, scratch: Scratch, slot: Any) -> np.ndarray:
        """Elements [start, start + count) as stored."""


class FileFeed:
    """A tensor of a checkpoint. Once ``last_pass`` was called every block is fingerprinted and checked."""

    def __init__(self, source: TensorSource, meta: TensorMeta) -> None:
        self.source, self.meta, self.dtype = source, meta, meta.dtype
        self._item = ITEMSIZE[meta.dtype]
        self._digest: TensorDigest | None = None
        self._is_broken: Callable[[np.ndarray, str], bool] | None = None

    def last_pass(
        self, digest: TensorDigest | None, is_broken: Callable[[np.ndarray, str], bool] | None
    ) -> None:
        """From now on every element is read exactly once."""
        self._digest, self._is_broken = digest, is_broken

    def load(self, start: int, count: int, scratch: Scratch, slot: Any) -> np.ndarray:
        buffer = scratch.bytes(slot, count * self._item)
        self.source.read_into(self.meta, start * self._item, buffer.data)
        if self._digest is not None:
            self._digest.add(start * self._item, buffer)
        raw = buffer.view(STORAGE[self.dtype])
        if self._is_broken is not None and self._is_broken(raw, self.dtype):
            refuse_nonfinite(raw, self.meta, start)
        return raw


def refuse_nonfinite(raw: np.ndarray, meta: TensorMeta, start: int) -> None:
    """Name model, tensor and the first element that is NaN or Inf."""
    values = decode(raw, meta.dtype, np.dtype(np.float64))
    bad = int(np.flatnonzero(~np.isfinite(values))[0])
    raise NonFiniteError(
        f"tensor {meta.name!r} holds {values[bad]} at element {start + bad}",
        where=str(meta.file),
        expected="finite numbers",
        fix="use another checkpoint, or --allow-nonfinite to go on",
    )
