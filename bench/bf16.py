"""Rounding to bfloat16 in numpy: from float32 for the model maker, from float64 for the exact references."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U16 = NDArray[np.uint16]


def from_float32(values: NDArray[np.float32], out: U16 | None = None) -> U16:
    """Nearest bfloat16 patterns of finite float32 values, ties to even.

    >>> [hex(x) for x in from_float32(np.array([1.0, 1.00390625, 1.01171875], np.float32))]
    ['0x3f80', '0x3f80', '0x3f82']
    """
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits >> 16) & np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    if out is None:
        return rounded.astype(np.uint16)
    out[...] = rounded
    return out


def to_float32(patterns: U16) -> NDArray[np.float32]:
    """The float32 values of bfloat16 patterns (exact)."""
    return (patterns.astype(np.uint32) << np.uint32(16)).view(np.float32)


def from_float64(values: NDArray[np.float64]) -> U16:
    """Nearest bfloat16 patterns of finite float64 values, ties to even, not rounded to float32 on the way.

    The float64 is first cut towards zero to float32 with the last bit kept "sticky" (round to odd), which
    makes the second rounding exact.

    >>> hex(from_float64(np.array([1.00390625 + 2.0**-40]))[0])
    '0x3f81'
    """
    values = np.asarray(values, dtype=np.float64)
    single = values.astype(np.float32)
    back = single.astype(np.float64)
    bits = single.view(np.uint32).copy()
    inexact = back != values
    bits -= (inexact & (np.abs(back) > np.abs(values))).astype(np.uint32)
    bits |= inexact.astype(np.uint32)
    return from_float32(bits.view(np.float32))
