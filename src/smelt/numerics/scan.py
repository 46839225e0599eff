"""One compiled look over stored elements: is any exponent all ones?"""

from __future__ import annotations

from numba import njit


@njit(
    ["boolean(uint16[::1], uint16)", "boolean(uint32[::1], uint32)", "boolean(uint64[::1], uint64)"],
    nogil=True, cache=True,
)  # fmt: skip
def any_masked(bits, mask):  # type: ignore[no-untyped-def]
    """Whether all bits of the mask are set in any element; no early exit, so that it vectorises."""
    found = mask ^ mask
    for i in range(bits.shape[0]):
        found |= 1 if (bits[i] & mask) == mask else 0
    return found != 0
