"""Stored numbers against exact fractions: one rounding to nearest even, in numpy and in compiled loops."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smelt.numerics.blocks import Block, Grid
from smelt.numerics.compiled import CompiledBackend
from smelt.numerics.expr import Program, Sym
from smelt.numerics.reference import NumpyBackend
from smelt.numerics.rounding import STORAGE, accumulation, decode, encode, has_nonfinite, near_boundary

#: (bits of precision, smallest normal exponent, largest exponent)
FORMATS = {"BF16": (8, -126, 127), "F16": (11, -14, 15), "F32": (24, -126, 127)}
BACKENDS = {"numpy": NumpyBackend(), "numba": CompiledBackend()}
F64 = np.dtype(np.float64)


def nearest(value: float, dtype: str) -> float:
    """The representable number nearest to an exact float64, ties to the even neighbour."""
    if not math.isfinite(value) or value == 0:
        return value
    precision, lowest, highest = FORMATS[dtype]
    exact = Fraction(value)
    exponent = max(math.frexp(value)[1] - 1, lowest) - (precision - 1)
    units = round(exact / Fraction(2) ** exponent)  # Fractions round half to even
    result = Fraction(units) * Fraction(2) ** exponent
    if abs(result) >= Fraction(2) ** (highest + 1):
        return math.copysign(math.inf, value)
    return math.copysign(float(result), value)


def store(values: np.ndarray, dtype: str, backend: str) -> np.ndarray:
    """float64 numbers stored by a backend, and read again."""
    block = Block([values], ("F64",), values.size, Grid(0))
    out = np.zeros(values.size, STORAGE[dtype])
    BACKENDS[backend].combine(Program.of([Sym.input(0)]), block, F64, out, dtype)
    return decode(out, dtype, F64)


def check(values: np.ndarray, dtype: str) -> None:
    """All ways to store agree with the oracle, signs of zero included."""
    wanted = np.array([nearest(float(value), dtype) for value in values])
    for backend in BACKENDS:
        found = store(values, dtype, backend)
        assert np.array_equal(found, wanted, equal_nan=True), backend
        assert (np.signbit(found) == np.signbit(wanted)).all()
    single = np.array([nearest(float(value), dtype) for value in values.astype(np.float32)])
    assert np.array_equal(
        decode(encode(values.astype(np.float32), dtype), dtype, F64), single, equal_nan=True
    )


@pytest.mark.parametrize("dtype", FORMATS)
@settings(max_examples=300, deadline=None)
@given(value=st.floats(allow_nan=False))
@example(value=2.0**-1074)
@example(value=-1e-320)
@example(value=1.7e308)
def test_any_double(dtype: str, value: float) -> None:
    with np.errstate(over="ignore", under="ignore"):
        check(np.array([value]), dtype)


@pytest.mark.parametrize("dtype", FORMATS)
def test_around_every_kind_of_boundary(dtype: str) -> None:
    """Halfway points, and a hair beside them: what float32 in between would call a tie is none."""
    random = np.random.default_rng(0)
    if dtype == "F32":
        patterns = random.integers(0, 2**31 - 2**23, 4000).astype(np.uint32)
        low, high = patterns.view(np.float32).astype(F64), (patterns + 1).view(np.float32).astype(F64)
    else:
        patterns = np.arange(0, {"BF16": 0x7F7F, "F16": 0x7BFF}[dtype], 7, dtype=np.uint16)
        low, high = decode(patterns, dtype, F64), decode(patterns + np.uint16(1), dtype, F64)
    middle = low / 2 + high / 2
    values = [
        middle,
        np.nextafter(middle, 0),
        np.nextafter(middle, np.inf),
        middle * (1 + 2.0**-33),
        middle * (1 - 2.0**-33),
        low,
    ]
    with np.errstate(over="ignore", under="ignore"):
        for part in values:
            check(part, dtype)
            check(-part, dtype)


@pytest.mark.parametrize("dtype", FORMATS)
def test_largest_and_overflow(dtype: str) -> None:
    precision, _, highest = FORMATS[dtype]
    largest = (2 - 2.0 ** (1 - precision)) * 2.0**highest
    edge = (2 - 2.0**-precision) * 2.0**highest  # from here on it is infinite
    with np.errstate(over="ignore"):
        check(
            np.array(
                [largest, np.nextafter(edge, 0), edge, np.nextafter(edge, np.inf), 2 * edge, 1e300, -edge]
            ),
            dtype,
        )
        assert store(np.array([edge]), dtype, "numba")[0] == np.inf


def test_double_rounding_would_be_wrong() -> None:
    """Just above a bf16 tie, yet exactly the tie in float32."""
    value = 1 + 2.0**-8 + 2.0**-40
    assert np.float32(value) == np.float32(1 + 2.0**-8)
    for backend in BACKENDS:
        assert store(np.array([value]), "BF16", backend)[0] == 1 + 2.0**-7
    half = 1 + 2.0**-11 + 2.0**-40
    for backend in BACKENDS:
        assert store(np.array([half]), "F16", backend)[0] == 1 + 2.0**-10


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_all_sixteen_bit_patterns_survive(dtype: str) -> None:
    raw = np.arange(65536, dtype=np.uint16)
    program = Program.of([Sym.input(0)])
    for acc in (np.dtype(np.float32), F64):
        stored = {}
        for name, backend in BACKENDS.items():
            stored[name] = np.zeros(65536, np.uint16)
            backend.combine(program, Block([raw], (dtype,), 65536, Grid(0)), acc, stored[name], dtype)
        assert (stored["numpy"] == stored["numba"]).all()
        finite = np.isfinite(decode(raw, dtype, F64))
        assert (stored["numpy"][finite] == raw[finite]).all()
        values = decode(raw, dtype, F64)
        assert np.array_equal(decode(stored["numba"], dtype, F64), values, equal_nan=True)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_decoding_is_what_the_format_says(dtype: str) -> None:
    precision, lowest, _ = FORMATS[dtype]
    raw = np.arange(65536, dtype=np.uint16)
    found = decode(raw, dtype, F64)
    exponent_bits = 16 - precision
    for pattern in range(0, 65536, 37):
        sign, rest = -1.0 if pattern >> 15 else 1.0, pattern & 0x7FFF
        exponent, mantissa = rest >> (precision - 1), rest & ((1 << (precision - 1)) - 1)
        if exponent == (1 << exponent_bits) - 1:
            assert not math.isfinite(found[pattern])
        elif exponent == 0:
            assert found[pattern] == sign * mantissa * 2.0 ** (lowest - precision + 1)
        else:
            scale = 2.0 ** (exponent - 1 + lowest)
            assert found[pattern] == sign * (1 + mantissa * 2.0 ** (1 - precision)) * scale


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_nonfinite_is_seen_anywhere(dtype: str) -> None:
    ordinary = encode(np.random.default_rng(0).normal(0, 1, 1003), dtype)
    for backend in BACKENDS.values():
        assert not backend.nonfinite(ordinary, dtype)
        assert not backend.nonfinite(ordinary[:0], dtype)
        for place in (0, 500, 1002):
            for bad in (np.nan, np.inf, -np.inf):
                spoiled = ordinary.copy()
                spoiled[place] = encode(np.array([bad]), dtype)[0]
                assert backend.nonfinite(spoiled, dtype) and has_nonfinite(spoiled, dtype)


def test_largest_finite_numbers_are_finite() -> None:
    raw = {"BF16": np.array([0x7F7F, 0xFF7F], np.uint16), "F16": np.array([0x7BFF, 0xFBFF], np.uint16)}
    for dtype, values in raw.items():
        assert not any(backend.nonfinite(values, dtype) for backend in BACKENDS.values())


def test_accumulation_is_as_wide_as_the_widest() -> None:
    assert accumulation({"BF16"}) == accumulation({"BF16", "F16"}) == np.float32
    assert accumulation({"BF16", "F32"}) == accumulation({"F64"}) == np.float64


def test_near_boundary_is_a_hair_around_ties() -> None:
    units = np.arange(-20, 21)
    single = (np.uint32(0x3F808000) + units.astype(np.uint32)).view(np.float32)
    near = near_boundary(single)
    assert near[20] and not near[0] and not near[-1]
    assert near.sum() == 17
    assert not near_boundary(np.array([0.0, 1.0, -2.0], np.float32)).any()
