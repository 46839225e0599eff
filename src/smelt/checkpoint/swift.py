"""Reading and writing in compiled code: one call for the steps that a block passes through, or for many blocks.

A block passes through several steps, each too short to be worth Python's lock: here the lock is given up once. The
functions are those of ``loops``, compiled once per machine. What they cannot do (spans that are not whole pieces, a
file that ends early) is left to the plain path, which says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from smelt.checkpoint.digest import PIECE, TensorDigest
from smelt.core.native import Native, address, load

if TYPE_CHECKING:
    from smelt.checkpoint.window import Window

#: pieces up to this length have another formula; ``xxhash`` takes them
SHORT = 240
SECRET = np.frombuffer(
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
        "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
        "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
        "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
    ),
    np.uint8,
).copy()

# A task is an array of 64-bit words: HEAD words, then WORDS for every input. Words of the head:
INPUTS, BLOCK, KERNEL, POINTERS, CONSTS = range(5)
ROW_LENGTH, COLUMN_LENGTH, SUMS, OUTPUTS, CUTS = range(8, 13)
#: where the output's words begin in the head, and the words of an input or output
OUT, HEAD, WORDS = 16, 24, 8
FD, OFFSET, ITEM, SLOTS, MASK, BUFFER, SEEN = range(7)
#: how many elements are gathered before they are written, of the output alone
ROOM = 7
#: elements of one partial sum
GRAIN = 65536


@cache
def compiled(name: str, arity: int) -> Native:
    """A function of ``loops``."""
    sources = (Path(__file__), Path(__file__).with_name("loops.py"))
    text = b"".join(path.read_bytes() for path in sources) + f"{name} {PIECE}".encode()

    def make() -> Callable[..., int]:
        from smelt.checkpoint import loops

        return getattr(loops, name).py_func

    return load(text, arity, make)


def _everywhere(mask: int, width: int) -> int:
    """A mask of elements of so many bytes, in 64 bits; 0 for none."""
    return int.from_bytes(mask.to_bytes(width, "little") * (8 // width), "little") if width else 0


def _room(digest: TensorDigest, start: int, size: int) -> np.ndarray | None:
    """Where the fingerprints of a span go; None when it is not made of whole pieces of the long formula."""
    end = start + size
    tail = size % PIECE
    if start % PIECE or not size or (tail and (end != digest.nbytes or tail <= SHORT)):
        return None
    slots: np.ndarray = digest.slots(start // PIECE, -(-size // PIECE))
    return slots


class SwiftReader:
    """Reads spans of one tensor that lies densely in a file, fingerprinting and checking as it is told."""

    def __init__(
        self, fd: int, offset: int, digest: TensorDigest | None, finite: tuple[int, int] | None
    ) -> None:
        self.fd, self.offset, self.digest = fd, offset, digest
        self.mask = _everywhere(*finite or (0, 0))
        self._fetch = compiled("fetch", 7).call

    def read(self, start: int, out: np.ndarray) -> int:
        """0: done; 1: done, and NaN or Inf is there; -1: to be done the plain way."""
        return self._read(start, out.size, address(out), PIECE)

    def scan(self, start: int, size: int, buffer: memoryview) -> int:
        """As ``read``, of bytes that need not be kept: they pass through a buffer of one piece."""
        assert len(buffer) >= PIECE
        return self._read(start, size, address(np.frombuffer(buffer, np.uint8)), 0)

    def _read(self, start: int, size: int, place: int, advance: int) -> int:
        slots = 0
        if self.digest is not None:
            room = _room(self.digest, start, size)
            if room is None:
                return -1
            slots = address(room)
        elif self.mask and 0 < size % PIECE <= SHORT:
            return -1
        status = self._fetch(self.fd, self.offset + start, size, place, advance, slots, self.mask)
        if status >= 0 and self.digest is not None:
            self.digest.mark(start // PIECE, -(-size // PIECE))
        return max(status, -1)


def write(fd: int, offset: int, data: np.ndarray, digest: TensorDigest, start: int) -> bool:
    """Write a span of a tensor and fingerprint it; False when it is to be done the plain way."""
    room = _room(digest, start, data.size)
    if room is None or compiled("store", 5).call(fd, offset + start, address(data), data.size, address(room)):
        return False
    digest.mark(start // PIECE, room.size)
    return True


@dataclass(frozen=True, slots=True)
class Port:
    """A tensor in a file as compiled code reads or writes it: ``finite`` is what to look for (mask, bytes); with a
    ``window`` it is read in place."""

    fd: int
    offset: int
    item: int
    digest: TensorDigest | None
    finite: tuple[int, int] = (0, 0)
    window: Window | None = None

    def words(self, buffer: int, start: int = 0, stop: int = 0) -> list[int]:
        """The words of a task on elements [start, stop)."""
        slots = address(self.digest.slots(0, 1)) if self.digest is not None and self.digest.nbytes else 0
        seen = self.window.at(start * self.item, stop * self.item) if self.window is not None else 0
        return [
            self.fd, self.offset, self.item, slots, _everywhere(*self.finite), buffer, seen and seen - start * self.item, 0,
        ]  # fmt: skip

    def fits(self, block: int) -> bool:
        """Whether blocks of so many elements begin at whole pieces."""
        return block * self.item % PIECE == 0

    def limit(self, count: int, block: int) -> int:
        """How many of ``count`` elements can be done here: a last piece of few bytes has another formula."""
        return count if not 0 < count * self.item % PIECE <= SHORT else (count - 1) // block * block

    def mark(self, start: int, stop: int) -> None:
        """Elements whose pieces were fingerprinted."""
        if self.digest is not None and stop > start:
            first, end = start * self.item // PIECE, -(-stop * self.item // PIECE)
            self.digest.mark(first, end - first)


@dataclass(frozen=True, slots=True)
class Work:
    """What a kernel is told besides its inputs: addresses of its tables, the lengths of rows and columns."""

    kernel: int
    tables: tuple[int, int, int, int]
    row_length: int
    column_length: int


def carry(
    ports: Sequence[Port], out: Port | None, work: Work | None, block: int, start: int, stop: int,
    buffers: Sequence[np.ndarray], sums: np.ndarray | None = None,
) -> int:  # fmt: skip
    """Blocks of one tensor in one call; how far it came. ``buffers`` hold one block of every input, then some of the
    output. Without ``work`` the only input is copied; with ``sums`` [grains, outputs] these are all that is made."""
    places = [address(buffer) for buffer in buffers]
    task = np.zeros(HEAD + WORDS * len(ports), np.int64)
    pointers = np.array(places[: len(ports)], np.int64)
    task[INPUTS], task[BLOCK], task[POINTERS] = len(ports), block, address(pointers)
    if work is not None:
        task[KERNEL], task[CONSTS : CONSTS + 4] = work.kernel, work.tables
        task[ROW_LENGTH], task[COLUMN_LENGTH] = work.row_length, work.column_length
    if sums is not None:
        cuts = np.empty(block // GRAIN + 2, np.int64)
        task[SUMS], task[OUTPUTS], task[CUTS] = address(sums), sums.shape[1], address(cuts)
    if out is not None:
        task[OUT : OUT + WORDS] = out.words(places[-1])
    for number, port in enumerate(ports):
        task[HEAD + WORDS * number : HEAD + WORDS * (number + 1)] = port.words(places[number], start, stop)
    if out is not None:
        # an input that is read to a buffer is written from there
        gathers = work is not None or task[HEAD + SEEN]
        task[OUT + ROOM] = buffers[-1].size // out.item if gathers else block
    reached = max(compiled("carry", 3).call(address(task), start, stop), start)
    for port in (*ports, *([out] if out is not None else ())):
        port.mark(start, reached)
    return reached
