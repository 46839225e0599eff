"""NaN and Inf found from raw bits, at the speed of memory."""

from __future__ import annotations

from typing import Any

import numpy as np

# (unsigned type, signed type, bits of +Inf): patterns from +Inf and from -Inf upward are not finite.
# Read as signed integers the positive ones are the largest; read as unsigned the negative ones are.
_KINDS = {
    "BF16": ("<u2", "<i2", 0x7F80),
    "F16": ("<u2", "<i2", 0x7C00),
    "F32": ("<u4", "<i4", 0x7F800000),
    "C64": ("<u4", "<i4", 0x7F800000),
    "F64": ("<u8", "<i8", 0x7FF0000000000000),
    "F8_E5M2": ("<u1", "<i1", 0x7C),
    "F8_E4M3": ("<u1", "<i1", 0x7F),
}
_SIGN = {"<u1": 0x80, "<u2": 0x8000, "<u4": 0x80000000, "<u8": 0x8000000000000000}


# dtypes with a single pattern for NaN and no Inf
_SINGLE = {"F8_E4M3FNUZ": 0x80, "F8_E5M2FNUZ": 0x80, "F8_E8M0": 0xFF}


#: (mask, bytes): an element whose bits hold all of the mask is NaN or Inf
EXPONENTS = {
    name: (limit, np.dtype(unsigned).itemsize)
    for name, (unsigned, _, limit) in _KINDS.items()
    if np.dtype(unsigned).itemsize > 1
}


def may_be_nonfinite(dtype: str) -> bool:
    """Whether a header dtype has patterns for NaN or Inf at all."""
    return dtype in _KINDS or dtype in _SINGLE


def has_nonfinite(data: Any, dtype: str) -> bool:
    """Whether a buffer of this header dtype holds NaN or Inf; integers never do.

    >>> has_nonfinite(np.array([1, np.inf], np.float32), "F32"), has_nonfinite(np.ones(3, np.float16), "F16")
    (True, False)
    """
    kind = _KINDS.get(dtype)
    if kind is None:
        return dtype in _SINGLE and bool((np.frombuffer(data, np.uint8) == _SINGLE[dtype]).any())
    unsigned, signed, limit = kind
    values = np.frombuffer(data, unsigned)
    if values.size == 0:
        return False
    return bool(values.view(signed).max() >= limit or values.max() >= limit | _SIGN[unsigned])


def nonfinite_positions(data: Any, dtype: str) -> np.ndarray:
    """Indices of the elements that are NaN or Inf (of C64, of its real and imaginary halves)."""
    kind = _KINDS.get(dtype)
    if kind is None:
        found = np.frombuffer(data, np.uint8) == _SINGLE[dtype] if dtype in _SINGLE else np.zeros(0, bool)
        return np.flatnonzero(found)
    unsigned, _, limit = kind
    values = np.frombuffer(data, unsigned)
    return np.flatnonzero((values & np.array(limit | (_SIGN[unsigned] - 1), unsigned)) >= limit)
