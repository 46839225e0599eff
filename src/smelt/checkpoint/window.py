"""A tensor of a file seen in place: the kernel's own cache mapped into memory, so that nothing is copied.

Reading a mapped page that cannot be had (the file was cut short meanwhile, the disk is broken) ends a process without a
word. So the pages are asked for first, some MiB at a time, by a call that answers; where the answer is no, reading goes
the plain way, which says what is wrong; only a file cut short within the moment between answer and use still ends the
process, as a kill would: nothing half-written appears. Only on systems that have that call: Linux from 5.14 on.
"""

from __future__ import annotations

import mmap
import os
import sys
from functools import cache

import numpy as np

from smelt.checkpoint.native import populate
from smelt.core.native import address

#: bytes asked for together
CHUNK = 8 * 2**20
#: tensors below this are not worth a mapping
LEAST = 1 << 20


class Window:
    """Bytes [offset, offset + length) of an open file."""

    def __init__(self, fd: int, offset: int, length: int) -> None:
        self._before = offset % mmap.ALLOCATIONGRANULARITY
        self._fd, self._end = fd, offset + length
        self._map = mmap.mmap(
            fd, self._before + length, mmap.MAP_SHARED, mmap.PROT_READ, offset=offset - self._before
        )
        self._bytes: np.ndarray | None = np.frombuffer(self._map, np.uint8)
        self._start = address(self._bytes)
        self._present = bytearray(-(-len(self._map) // CHUNK))

    @staticmethod
    def of(fd: int, offset: int, length: int) -> Window | None:
        """None where nothing is gained by it, or what goes wrong could not be told."""
        if length < LEAST or not _can_ask():
            return None
        try:
            return Window(fd, offset, length)
        except (OSError, ValueError):  # no file of a kind that can be mapped, or shorter than it was
            return None

    def at(self, first: int, end: int) -> int:
        """The address of byte ``first``, once all up to ``end`` are there; 0 when they cannot be had."""
        if self._bytes is None or os.fstat(self._fd).st_size < self._end:
            return 0
        for chunk in range((self._before + first) // CHUNK, -(-(self._before + end) // CHUNK)):
            if not self._present[chunk]:
                start = chunk * CHUNK
                if not populate(self._start + start, min(CHUNK, len(self._map) - start)):
                    return 0
                self._present[chunk] = 1
        return self._start + self._before + first

    def view(self, first: int, end: int) -> np.ndarray | None:
        """These bytes, read-only; None when they cannot be had."""
        if not self.at(first, end) or self._bytes is None:
            return None
        return self._bytes[self._before + first : self._before + end]

    def close(self) -> None:
        """Let go of the pages; where something still looks at them, with its end."""
        self._bytes = None
        try:
            self._map.close()
        except BufferError:
            return


@cache
def _can_ask() -> bool:
    """Whether the kernel answers for pages."""
    if sys.platform != "linux":
        return False
    page = mmap.mmap(-1, mmap.PAGESIZE)
    start = address(np.frombuffer(page, np.uint8))
    return populate(start, mmap.PAGESIZE)
