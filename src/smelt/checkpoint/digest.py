"""Content fingerprints of tensors that can be computed from pieces arriving in any order.

The digest of a tensor is xxh3_128 over the xxh3_64 digests (8 bytes each, canonical order) of its
consecutive pieces of 128 KiB; the last piece may be shorter. It depends on the bytes alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from xxhash import xxh3_64_digest, xxh3_128_hexdigest

from smelt.checkpoint.files import as_bytes

#: bytes in a piece
PIECE = 128 * 1024
_MANY_SPANS = 256
_JOINING = threading.Lock()


class TensorDigest:
    """Digest of one tensor of ``nbytes`` bytes; ``add`` takes pieces in any order, from any thread.

    >>> digest = TensorDigest(PIECE + 3)
    >>> digest.add(PIECE, b"xyz"); digest.add(0, bytes(PIECE))
    >>> digest.hexdigest() == tensor_digest(bytes(PIECE) + b"xyz")
    True
    """

    __slots__ = ("_have", "_pieces", "nbytes")

    def __init__(self, nbytes: int) -> None:
        count = -(-nbytes // PIECE)
        self.nbytes = nbytes
        self._pieces = bytearray(8 * count)
        self._have = bytearray(count)

    def add(self, start: int, data: Any) -> None:
        """Take bytes [start, start + len(data)): whole pieces, the last one of the tensor possibly short."""
        view = as_bytes(data)
        end = start + len(view)
        if start < 0 or start % PIECE or end > self.nbytes or (end % PIECE and end != self.nbytes):
            raise ValueError(f"bytes {start} to {end} of {self.nbytes} are not whole pieces of {PIECE}")
        for at in range(0, len(view), PIECE):
            self.put((start + at) // PIECE, xxh3_64_digest(view[at : at + PIECE]))

    def put(self, number: int, piece: bytes) -> None:
        """Take the digest of piece ``number``."""
        self._pieces[8 * number : 8 * number + 8] = piece
        self._have[number] = 1

    def slots(self, first: int, count: int) -> Any:
        """Room for the digests of ``count`` pieces, as numbers in the order of their bytes; ``mark`` them then."""
        import numpy as np

        return np.frombuffer(self._pieces, np.uint64, count, 8 * first)

    def mark(self, first: int, count: int) -> None:
        """Pieces whose digests were put in their slots."""
        self._have[first : first + count] = b"\1" * count

    def piece(self, number: int) -> bytes | None:
        """The digest of piece ``number``, or None when it has not come."""
        return bytes(self._pieces[8 * number : 8 * number + 8]) if self._have[number] else None

    @property
    def complete(self) -> bool:
        """Whether every piece has come."""
        return self._have.count(0) == 0

    @property
    def seen_bytes(self) -> int:
        """Bytes of the pieces that have come."""
        return self.nbytes - sum(end - start for start, end in self.unseen())

    def unseen(self) -> Iterator[tuple[int, int]]:
        """Ranges of bytes, first and end, whose pieces have not come.

        >>> digest = TensorDigest(3 * PIECE)
        >>> digest.add(PIECE, bytes(PIECE)); list(digest.unseen())
        [(0, 131072), (262144, 393216)]
        """
        at = self._have.find(0)
        while at >= 0:
            end = self._have.find(1, at)
            end = len(self._have) if end < 0 else end
            yield at * PIECE, min(end * PIECE, self.nbytes)
            at = self._have.find(0, end)

    def hexdigest(self) -> str:
        """The digest, 32 hexadecimal digits."""
        if not self.complete:
            raise ValueError(f"{self._have.count(0)} pieces have not come")
        return xxh3_128_hexdigest(self._pieces)

    def differing(self, other: TensorDigest) -> list[int]:
        """Numbers of the pieces that both have and that differ."""
        if self._pieces == other._pieces:
            return []
        both = (n for n in range(len(self._have)) if self._have[n] and other._have[n])
        return [n for n in both if self.piece(n) != other.piece(n)]


def tensor_digest(data: Any) -> str:
    """Digest of a tensor held in one buffer.

    >>> tensor_digest(b"")
    '99aa06d3014798d86001c324468d497f'
    """
    view = as_bytes(data)
    digest = TensorDigest(len(view))
    digest.add(0, view)
    return digest.hexdigest()


class WriteLog:
    """What was written of one tensor: enough to prove later that the same bytes are on disk.

    Whole pieces are kept as digest pieces; what sticks out at either end of a write is kept as a loose
    record (start, length, xxh3_64) and read again on its own.
    """

    __slots__ = ("digest", "limit", "loose", "spans")

    def __init__(self, nbytes: int) -> None:
        self.digest = TensorDigest(nbytes)
        self.loose: list[tuple[int, int, bytes]] = []
        self.spans: list[tuple[int, int]] = []
        self.limit = _MANY_SPANS

    def add(self, start: int, view: memoryview) -> None:
        """Record a write of ``view`` at ``start``."""
        self.add_pieces(start, view)
        self.add_span(start, start + len(view))

    def add_pieces(self, start: int, view: memoryview) -> None:
        """Fingerprint what was written."""
        end = start + len(view)
        first = -(-start // PIECE) * PIECE
        last = end if end == self.digest.nbytes else end // PIECE * PIECE
        if first >= last:
            self._add_loose(start, view)
        else:
            self._add_loose(start, view[: first - start])
            self.digest.add(first, view[first - start : last - start])
            self._add_loose(last, view[last - start :])

    def add_span(self, start: int, end: int) -> None:
        """Note which bytes were written."""
        self.spans.append((start, end))
        if len(self.spans) > self.limit:
            self._join_spans()

    def _join_spans(self) -> None:
        """Make one span of neighbours. Other threads may append meanwhile: only what was seen is replaced."""
        with _JOINING:
            seen = len(self.spans)
            joined: list[tuple[int, int]] = []
            for start, end in sorted(self.spans[:seen]):
                if joined and joined[-1][1] == start:
                    joined[-1] = (joined[-1][0], end)
                else:
                    joined.append((start, end))
            self.spans[:seen] = joined
            self.limit = max(_MANY_SPANS, 2 * len(joined))

    def _add_loose(self, start: int, view: memoryview) -> None:
        if len(view):
            self.loose.append((start, len(view), xxh3_64_digest(view)))

    def gap(self) -> str:
        """What is wrong with the coverage of the tensor: '' when every byte was written exactly once."""
        reached = 0
        for start, end in [*sorted(self.spans), (self.digest.nbytes, 0)]:
            if start < reached:
                return f"byte {start} was written twice"
            if start > reached:
                return f"bytes {reached} to {start} were not written"
            reached = end
        return ""

    def disagreements(self, found: TensorDigest, read: Callable[[int, int], memoryview]) -> list[str]:
        """Byte ranges that are on disk otherwise than they were written; ``read(start, length)`` re-reads."""
        wrong = [f"{n * PIECE} to {min((n + 1) * PIECE, found.nbytes)}" for n in self.digest.differing(found)]
        for start, length, piece in self.loose:
            if xxh3_64_digest(read(start, length)) != piece:
                wrong.append(f"{start} to {start + length}")
        return wrong
