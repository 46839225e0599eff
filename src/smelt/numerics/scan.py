"""One compiled look over stored elements: is any exponent all ones?"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit("boolean(uint16[::1], uint16)", nogil=True, cache=True)
def _any_masked_16(bits, mask):
    most = np.uint16(0)
    for i in range(bits.shape[0]):  # no early exit, so that it vectorises
        most = max(most, np.uint16(bits[i] & mask))
    return most == mask


@njit("boolean(uint32[::1], uint32)", nogil=True, cache=True)
def _any_masked_32(bits, mask):
    most = np.uint32(0)
    for i in range(bits.shape[0]):
        most = max(most, np.uint32(bits[i] & mask))
    return most == mask


@njit("boolean(uint64[::1], uint64)", nogil=True, cache=True)
def _any_masked_64(bits, mask):
    most = np.uint64(0)
    for i in range(bits.shape[0]):
        most = max(most, np.uint64(bits[i] & mask))
    return most == mask


_BY_SIZE = {2: _any_masked_16, 4: _any_masked_32, 8: _any_masked_64}


def any_masked(bits: np.ndarray, mask: np.unsignedinteger) -> bool:
    """Whether all bits of the mask are set in any element."""
    return bool(_BY_SIZE[bits.itemsize](bits, mask))
