"""Numbers as they lie in files <-> numbers to compute with, in numpy; one rounding, to nearest even."""

from __future__ import annotations

import numpy as np

#: how each dtype's elements are viewed in memory
STORAGE: dict[str, np.dtype] = {
    "BF16": np.dtype(np.uint16),
    "F16": np.dtype(np.uint16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}

#: (mask of the exponent, storage as unsigned integer): all exponent bits set means NaN or Inf
EXPONENT: dict[str, tuple[int, np.dtype]] = {
    "BF16": (0x7F80, np.dtype(np.uint16)),
    "F16": (0x7C00, np.dtype(np.uint16)),
    "F32": (0x7F800000, np.dtype(np.uint32)),
    "F64": (0x7FF0000000000000, np.dtype(np.uint64)),
}

#: units in the last place of float32 by which a short formula may be wrong, with a margin
NEAR = 8


def accumulation(dtypes: set[str]) -> np.dtype:
    """float32 when everything read and written has 16 bits, else float64.

    >>> accumulation({"BF16", "F16"})
    dtype('float32')
    >>> accumulation({"BF16", "F32"})
    dtype('float64')
    """
    return np.dtype(np.float32) if dtypes <= {"BF16", "F16"} else np.dtype(np.float64)


def decode(raw: np.ndarray, dtype: str, acc: np.dtype) -> np.ndarray:
    """Stored elements as numbers of the accumulation dtype."""
    if dtype == "BF16":
        values = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    elif dtype == "F16":
        values = raw.view(np.float16)
    else:
        values = raw
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        return values.astype(acc, copy=False)


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers as stored elements, rounded once to nearest even.

    >>> hex(encode(np.array([1.0 + 2**-8]), "BF16")[0])  # a tie goes to the even neighbour
    '0x3f80'
    """
    if dtype == "BF16":
        return _to_bf16(values)
    if dtype == "F16":
        with np.errstate(over="ignore", under="ignore"):
            return values.astype(np.float16).view(np.uint16)
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(STORAGE[dtype], copy=False)


def _to_bf16(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        single = values.astype(np.float32, copy=False)
    bits = single.view(np.uint32)
    if values.dtype == np.float64:  # float64 -> float32 may land on a tie that is none: step off it
        back = single.astype(np.float64)
        lost = ((bits & np.uint32(0xFFFF)) == 0x8000) & (back != values)
        step = np.where(np.abs(values) > np.abs(back), 1, -1).astype(np.int32)
        bits = (bits.view(np.int32) + np.where(lost, step, 0).astype(np.int32)).view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    broken = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)  # NaN keeps its sign and stays NaN
    return np.where(broken, (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16)


def near_boundary(single: np.ndarray) -> np.ndarray:
    """Whether a float32 lies within NEAR units of where rounding to bf16 changes."""
    return ((single.view(np.uint32) + np.uint32(0x8000 + NEAR)) & np.uint32(0xFFFF)) <= 2 * NEAR


def has_nonfinite(raw: np.ndarray, dtype: str) -> bool:
    """Whether any stored element is NaN or Inf."""
    mask, unsigned = EXPONENT[dtype]
    bits = raw.view(unsigned)
    return bool(bits.size) and bool(((bits & unsigned.type(mask)) == mask).any())
