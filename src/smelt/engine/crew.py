"""Who does the work: one thread alone, or all threads together on the blocks of one large tensor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from smelt.checkpoint import PIECE
from smelt.engine.feeds import Scratch

_LOCAL = threading.local()


class Crew:
    """Runs a function over the blocks of a tensor; results come back in block order."""

    def __init__(self, block: int, pool: ThreadPoolExecutor | None = None, threads: int = 1) -> None:
        self.block, self._pool, self._threads = block, pool, threads

    def scratch(self) -> Scratch:
        """The calling thread's buffers."""
        scratch: Scratch | None = getattr(_LOCAL, "scratch", None)
        if scratch is None:
            scratch = _LOCAL.scratch = Scratch()
        return scratch

    def of_bytes(self) -> Crew:
        """The same threads on blocks counted in bytes, for what is only copied."""
        return Crew(max(2 * self.block, PIECE), self._pool, self._threads)

    def spans(self, count: int) -> list[tuple[int, int]]:
        """(start, size) of every block; one empty block for an empty tensor. None crosses a multiple of 2**32,
        where the keys of random draws change."""
        return [
            (start, min(self.block, end - start))
            for first in range(0, max(count, 1), 1 << 32)
            for end in [min(first + (1 << 32), count)]
            for start in range(first, max(end, first + 1), self.block)
        ]

    def each_block(self, count: int, work: Callable[[int, int, Scratch], Any]) -> list[Any]:
        """``work(start, size, scratch)`` for every block."""
        spans = self.spans(count)
        if self._pool is None or len(spans) == 1:
            return [work(start, size, self.scratch()) for start, size in spans]
        return self._together(spans, work)

    def each_batch(
        self, count: int, quick: Callable[[int, int, Scratch], tuple[int, Any]],
        work: Callable[[int, int, Scratch], Any], batch: int,
    ) -> list[Any]:  # fmt: skip
        """At most about ``batch`` elements at a time by ``quick(start, stop, scratch)``, which says how far it came and
        what it found; the blocks it left by ``work``. Results in order."""

        def several(start: int, size: int, scratch: Scratch) -> list[Any]:
            stop = start + size
            reached, result = quick(start, stop, scratch)
            found = [result] if reached > start else []
            while reached < stop:
                length = min(self.block, stop - reached)
                found.append(work(reached, length, scratch))
                reached += length
            return found

        if self._pool is not None:  # enough turns for every thread
            batch = min(batch, count // (4 * self._threads))
        larger = Crew(max(batch // self.block, 1) * self.block, self._pool, self._threads)
        return [result for found in larger.each_block(count, several) for result in found]

    def _together(self, spans: list[tuple[int, int]], work: Callable[[int, int, Scratch], Any]) -> list[Any]:
        assert self._pool is not None
        results: list[Any] = [None] * len(spans)
        turn = iter(range(len(spans)))
        lock = threading.Lock()
        stop = threading.Event()

        def take() -> None:
            while not stop.is_set():
                with lock:
                    at = next(turn, None)
                if at is None:
                    return
                try:
                    results[at] = work(*spans[at], self.scratch())
                except BaseException:
                    stop.set()
                    raise

        helpers = [self._pool.submit(take) for _ in range(min(self._threads, len(spans)))]
        errors = [error for helper in helpers if (error := helper.exception()) is not None]
        if errors:
            raise errors[0]
        return results
