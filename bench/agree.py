"""How far two bfloat16 checkpoints agree: the proof that two programs were timed on the same merge."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import stfile

BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class Agreement:
    """Counts over all elements of all tensors."""

    elements: int
    equal: int
    one_step: int  # equal or neighbouring bfloat16 values

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _ordered(patterns: NDArray[np.uint16]) -> NDArray[np.int32]:
    """Patterns as integers in the order of their values, neighbours one apart."""
    bits = patterns.astype(np.int32)
    return np.where(bits & 0x8000, 0x8000 - bits, bits)


def compare(left: Path, right: Path) -> Agreement:
    """Compare two checkpoint folders; tensors must be named alike."""
    mine = {name: array for name, _, array in stfile.raw_tensors(left)}
    theirs = {name: array for name, _, array in stfile.raw_tensors(right)}
    if mine.keys() != theirs.keys():
        raise SystemExit(
            f"{left} and {right} hold different tensors: {sorted(mine.keys() ^ theirs.keys())[:5]}"
        )
    elements = equal = one_step = 0
    for name, array in mine.items():
        a, b = array.reshape(-1), theirs[name].reshape(-1)
        for start in range(0, a.size, BLOCK):
            gap = np.abs(_ordered(a[start : start + BLOCK]) - _ordered(b[start : start + BLOCK]))
            elements += gap.size
            equal += int((gap == 0).sum())
            one_step += int((gap <= 1).sum())
    return Agreement(elements, equal, one_step)
