"""Exact order statistics of streamed numbers: which value ends the k largest, and how ties are split.

Not negative floats order like their bit patterns, so the search runs on unsigned integers. A sample brackets
the answer; one pass counts what lies above and bins what lies inside; a bin that holds a single pattern (the
rule for differences of 16-bit numbers) is the answer, otherwise a second pass collects the few patterns left.
The sample decides only how fast the answer is found, never what it is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from smelt.numerics.stats import KEEP_ALL, KEEP_NONE

#: bins of a bracket; fewer for huge groups, where per-block counts would add up
BINS, BINS_HUGE, HUGE = 1024, 256, 1 << 30
#: with this few candidates left, collecting them beats binning them
COLLECT_AT_MOST = 1 << 22
#: a group this small is collected at once
SMALL = 1 << 16


@dataclass(frozen=True, slots=True)
class Pass:
    """What the next pass over the data must look for."""

    kind: Literal["bracket", "collect"]
    low: int
    high: int
    shift: int = 0


@dataclass
class Selector:
    """Finds the pattern of rank ``keep`` (1 is the largest) among ``count`` patterns of ``bits`` bits."""

    count: int
    keep: int
    bits: int
    sample: np.ndarray | None = None
    pattern: int = -1
    ties: int = 0  # how many equal patterns are kept, the first ones in order
    tie_counts: list[int] | None = None  # equal patterns per block
    _above: int = 0
    _next: Pass | None = field(default=None)
    #: of every bin so far: how many patterns, the least and the largest of them
    _bins: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        top = (1 << self.bits) - 1
        if self.count <= SMALL:
            self._next = Pass("collect", 0, top)
        elif self.sample is not None and len(self.sample):
            self._next = self._from_sample(top)
        else:
            self._next = self._bracket(0, top)

    @property
    def trivial(self) -> bool:
        """Everything or nothing is kept."""
        return self.keep <= 0 or self.keep >= self.count

    @property
    def done(self) -> bool:
        """Whether the pattern is known."""
        return self.trivial or self.pattern >= 0

    @property
    def next(self) -> Pass:
        """The pass that is needed now."""
        assert self._next is not None
        return self._next

    def _bracket(self, low: int, high: int) -> Pass:
        bins = BINS if self.count < HUGE else BINS_HUGE
        shift = max(0, (high - low).bit_length() - (bins.bit_length() - 1))
        return Pass("bracket", low, high, shift)

    def _from_sample(self, top: int) -> Pass:
        """Bracket four standard deviations of the sample's rank around the wanted one."""
        assert self.sample is not None
        ordered = np.sort(self.sample)
        size, share = len(ordered), 1.0 - self.keep / self.count
        spread = 4.0 * np.sqrt(size * share * (1.0 - share)) + 4.0
        first, last = int(size * share - spread), int(size * share + spread)
        low = 0 if first <= 0 else int(ordered[first])
        high = top if last >= size - 1 else int(ordered[last])
        inside = np.searchsorted(ordered, high, side="right") - np.searchsorted(ordered, low, side="left")
        if low < high and inside * self.count <= COLLECT_AT_MOST * size:
            return Pass("collect", low, high)
        return self._bracket(low, high)

    def fold(self, result: tuple[int, np.ndarray, np.ndarray, np.ndarray]) -> tuple[int, np.ndarray]:
        """What must be kept of one block of a bracket pass: patterns above, patterns per bin. Thread-safe."""
        above, inside, least, most = result
        counts = inside
        with self._lock:
            if self._bins is not None:
                counts = self._bins[0] + inside
                least, most = np.minimum(self._bins[1], least), np.maximum(self._bins[2], most)
            self._bins = counts, least, most
        return above, inside.astype(np.uint16 if inside.max(initial=0) < 1 << 16 else np.uint32)

    def take_bracket(self, results: Iterable[tuple[int, np.ndarray]]) -> None:
        """Digest a bracket pass: what ``fold`` kept of every block, in their order."""
        above = 0
        per_block = []  # [blocks, bins]
        for more, inside in results:
            above += more
            per_block.append(inside)
        assert self._bins is not None
        (counts, least, most), self._bins = self._bins, None
        if self._misled(above, int(counts.sum())):
            return
        higher = above + np.cumsum(counts[::-1])[::-1] - counts  # patterns above each bin
        chosen = int(np.flatnonzero((higher < self.keep) & (self.keep <= higher + counts))[0])
        smallest, largest = int(least[chosen]), int(most[chosen])
        self._above = int(higher[chosen])
        if smallest == largest:
            self._finish(smallest, [int(row[chosen]) for row in per_block])
        elif counts[chosen] <= COLLECT_AT_MOST:
            self._next = Pass("collect", smallest, largest)
        else:
            self._next = self._bracket(smallest, largest)

    def _misled(self, above: int, inside: int) -> bool:
        """Whether the answer lies outside the bracket; if so, look on the right side of it next."""
        if above < self.keep <= above + inside:
            return False
        low, high = self.next.low, self.next.high
        self._next = (
            self._bracket(high + 1, (1 << self.bits) - 1) if self.keep <= above else self._bracket(0, low - 1)
        )
        return True

    def take_collected(self, results: Iterable[tuple[int, np.ndarray]]) -> None:
        """Digest the results of a collect pass, one per block in order."""
        results = list(results)
        above = sum(more for more, _ in results)
        merged = np.concatenate([patterns for _, patterns in results])
        if self._misled(above, len(merged)):
            return
        merged.sort()  # vectorised; introselect crawls through long runs of equal values
        pattern = merged[len(merged) - (self.keep - above)]
        self._above = above + int(len(merged) - np.searchsorted(merged, pattern, side="right"))
        self._finish(int(pattern), [int((patterns == pattern).sum()) for _, patterns in results])

    def _finish(self, pattern: int, tie_counts: list[int]) -> None:
        self.pattern = pattern
        self.tie_counts = tie_counts
        self.ties = self.keep - self._above

    def value(self) -> float:
        """The pattern as a number."""
        if self.trivial:
            return KEEP_NONE.value if self.keep <= 0 else KEEP_ALL.value
        unsigned, real = (np.uint32, np.float32) if self.bits == 32 else (np.uint64, np.float64)
        return float(np.array([self.pattern], unsigned).view(real)[0])

    def split(self) -> tuple[int, int] | None:
        """(block, how many of its equal patterns are kept) where the ties are split; None when all are kept."""
        assert self.tie_counts is not None
        left = self.ties
        if left >= sum(self.tie_counts):
            return None
        for block, ties in enumerate(self.tie_counts):
            if left <= ties:
                return block, left
            left -= ties
        raise AssertionError("ties ran out")
