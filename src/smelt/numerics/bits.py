"""Bit-level conversions for compiled loops: stored bf16/fp16 <-> float32, one rounding to nearest even."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)


def _bitcast(argument: types.Type, result: types.Type, target: ir.Type):
    @intrinsic
    def cast(typing_context, value):
        def generate(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], target)

        return result(argument), generate

    return cast


bits32 = _bitcast(types.float32, types.uint32, _I32)
bits64 = _bitcast(types.float64, types.uint64, _I64)
from_bits64 = _bitcast(types.uint64, types.float64, ir.DoubleType())
from_bits32 = _bitcast(types.uint32, types.float32, ir.FloatType())


@intrinsic
def half_to_single(typing_context, value):
    """Stored fp16 -> float32 (the F16C instruction on x86)."""

    def generate(context, builder, signature, arguments):
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def single_to_half(typing_context, value):
    """float32 -> stored fp16, to nearest even."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), _I16)

    return types.uint16(types.float32), generate


@intrinsic
def fused(typing_context, first, second, addend):
    """first * second + addend, rounded once."""

    def generate(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return types.float64(types.float64, types.float64, types.float64), generate


# Numba widens every integer operation to 64 bits; casting each result back keeps loops in 32-bit lanes.


@njit(nogil=True, inline="always")
def bf16_to_single(raw):
    """Stored bf16 -> float32: the upper half of the same bits."""
    return from_bits32(np.uint32(np.uint32(raw) << np.uint32(16)))


@njit(nogil=True, inline="always")
def single_to_bf16(value):
    """float32 -> stored bf16, to nearest even; NaN stays NaN."""
    bits = bits32(value)
    high = np.uint32(bits >> np.uint32(16))
    odd = np.uint32(high & np.uint32(1))
    rounded = np.uint32(np.uint32(bits + np.uint32(odd + np.uint32(0x7FFF))) >> np.uint32(16))
    broken = np.uint32(high | np.uint32(0x40))
    return np.uint16(broken if value != value else rounded)


@njit(nogil=True, inline="always")
def _off_the_tie(value, single, back, bits):
    """The neighbouring pattern on the side of the exact value."""
    step = np.uint32(1) if abs(value) > abs(back) else np.uint32(0xFFFFFFFF)
    return from_bits32(np.uint32(bits + step))


@njit(nogil=True, inline="always")
def double_to_bf16(value):
    """float64 -> stored bf16 with a single rounding to nearest even; NaN stays NaN.

    Adding 1.5 * 2**45 times the value's power of two leaves it eight significant bits (fewer where bf16 is
    subnormal, for the power is bounded below), rounded by the processor itself; taking it away again is exact.
    """
    power = from_bits64(np.uint64(bits64(value) & np.uint64(0x7FF0000000000000)))
    large = min(max(power * (1.5 * 2.0**45), 1.5 * 2.0 ** (45 - 126)), 1.5 * 2.0 ** (45 + 129))
    bits = bits32(np.float32((value + large) - large))
    negative = np.uint32(np.uint64(bits64(value) >> np.uint64(32)) & np.uint64(0x80000000))  # of a zero
    return np.uint16(np.uint32(bits | negative) >> np.uint32(16))


@njit(nogil=True, inline="always")
def double_to_half(value):
    """float64 -> stored fp16 with a single rounding (float32 rounded to odd in between)."""
    single = np.float32(value)
    back = np.float64(single)
    bits = bits32(single)
    even = (np.uint32(bits & np.uint32(1)) == np.uint32(0)) & (back != value)
    even = even & (abs(back) <= 3.4028234663852886e38)
    return single_to_half(_off_the_tie(value, single, back, bits) if even else single)  # type: ignore[call-arg]


@njit(nogil=True, inline="always")
def mix32(value):
    """One multiply-xorshift round modulo 2**32 (see ``counter``)."""
    value = np.uint32(value ^ np.uint32(value >> np.uint32(16)))
    value = np.uint32(value * np.uint32(0x7FEB352D))
    value = np.uint32(value ^ np.uint32(value >> np.uint32(15)))
    value = np.uint32(value * np.uint32(0x846CA68B))
    return np.uint32(value ^ np.uint32(value >> np.uint32(16)))


@njit(nogil=True, inline="always")
def high_offset(index, high_key):
    """What the upper half of an element index adds to a draw; the same for all of a block."""
    return np.uint32(np.uint32(np.uint32(index >> 32) * np.uint32(0x9E3779B1)) + high_key)


@njit(nogil=True, inline="always")
def uniform24(low, low_key, offset):
    """24 random bits, as int32, for the lower half of an element index."""
    first = mix32(np.uint32(np.uint32(low * np.uint32(0x9E3779B1)) + low_key))
    return np.int32(np.uint32(mix32(np.uint32(first ^ offset)) >> np.uint32(8)))
