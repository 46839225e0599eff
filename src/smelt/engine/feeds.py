"""Where blocks come from: a file, or another merge evaluated on the way; buffers are per thread and reused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from smelt.checkpoint import TensorDigest
from smelt.core.errors import NonFiniteError
from smelt.core.types import ITEMSIZE, TensorMeta, TensorSource
from smelt.numerics.rounding import EXPONENT, STORAGE, decode

if TYPE_CHECKING:
    from smelt.checkpoint.swift import Port, SwiftReader
    from smelt.checkpoint.window import Window

_BYTES = np.dtype(np.uint8)


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
    """A tensor of a checkpoint. Once ``last_pass`` was called every block is fingerprinted and checked. ``in_place``
    has it looked at where the kernel caches it, not copied, where that can be done."""

    def __init__(self, source: TensorSource, meta: TensorMeta, *, in_place: bool = False) -> None:
        self.source, self.meta, self.dtype = source, meta, meta.dtype
        self._item = ITEMSIZE[meta.dtype]
        self._digest: TensorDigest | None = None
        self._is_broken: Callable[[np.ndarray, str], bool] | None = None
        self._swift: SwiftReader | None = None
        self._in_place = in_place
        self._window: Window | None = None
        self._finite = (0, 0)

    def last_pass(
        self, digest: TensorDigest | None, is_broken: Callable[[np.ndarray, str], bool] | None,
        swift: bool = False,
    ) -> None:  # fmt: skip
        """From now on every element is read exactly once. ``swift`` has compiled code do it where it can."""
        self._digest, self._is_broken = digest, is_broken
        place = self.source.place(self.meta) if swift else None
        if place is not None:
            from smelt.checkpoint.swift import SwiftReader

            mask, unsigned = EXPONENT.get(self.dtype, (0, _BYTES))
            self._finite = (mask, unsigned.itemsize) if is_broken is not None and mask else (0, 0)
            self._swift = SwiftReader(*place, digest, self._finite)

    def port(self, item: int = 0) -> Port | None:
        """The tensor as compiled code reads it, in elements (or in units of ``item`` bytes); None where it does not
        lie densely in a file."""
        from smelt.checkpoint.swift import Port

        place = self.source.place(self.meta)
        if place is None:
            return None
        return Port(*place, item or self._item, self._digest, self._finite, self.window())

    def window(self) -> Window | None:
        """The tensor seen in its file."""
        if self._window is None and self._in_place:
            from smelt.checkpoint.window import Window

            place = self.source.place(self.meta)
            if place is not None and place[1] % self._item == 0:
                self._window = Window.of(*place, self.meta.nbytes)
            self._in_place = self._window is not None
        return self._window

    def let_go(self) -> None:
        """No more will be read."""
        window, self._window, self._in_place = self._window, None, False
        if window is not None:
            window.close()

    def load(self, start: int, count: int, scratch: Scratch, slot: Any) -> np.ndarray:
        if self._swift is None and self._digest is None and self._is_broken is None:
            window = self.window()
            seen = (
                window.view(start * self._item, (start + count) * self._item) if window is not None else None
            )
            if seen is not None:
                return seen.view(STORAGE[self.dtype])
        buffer = scratch.bytes(slot, count * self._item)
        self.read(start * self._item, buffer)
        return buffer.view(STORAGE[self.dtype])

    def read(self, start: int, buffer: np.ndarray) -> None:
        """Bytes of the tensor from ``start``."""
        broken = -1 if self._swift is None else self._swift.read(start, buffer)
        if broken < 0:
            self.source.read_into(self.meta, start, buffer.data)
            if self._digest is not None:
                self._digest.add(start, buffer)
            broken = self._is_broken is not None and self._is_broken(
                buffer.view(STORAGE[self.dtype]), self.dtype
            )
        if broken:
            refuse_nonfinite(buffer.view(STORAGE[self.dtype]), self.meta, start // self._item)


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
