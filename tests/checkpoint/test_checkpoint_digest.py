"""Digests depend on bytes alone, whatever the order and size of pieces; NaN and Inf are found from bits."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_digest, xxh3_128_hexdigest

from smelt.checkpoint import PIECE, TensorDigest, WriteLog, has_nonfinite, nonfinite_positions, tensor_digest

DATA = np.random.default_rng(0).integers(0, 256, 5 * PIECE + 777, dtype=np.uint8).tobytes()


def test_the_digest_is_what_its_definition_says() -> None:
    pieces = [DATA[at : at + PIECE] for at in range(0, len(DATA), PIECE)]
    assert tensor_digest(DATA) == xxh3_128_hexdigest(b"".join(xxh3_64_digest(piece) for piece in pieces))
    assert tensor_digest(b"") == xxh3_128_hexdigest(b"")


@pytest.mark.parametrize("seed", range(5))
def test_order_and_grouping_do_not_matter(seed: int) -> None:
    rng = random.Random(seed)
    cuts = sorted({0, 6, *rng.sample(range(1, 6), 3)})
    spans = list(pairwise(cuts))
    rng.shuffle(spans)
    digest = TensorDigest(len(DATA))
    for first, last in spans:
        assert not digest.complete
        with pytest.raises(ValueError, match="have not come"):
            digest.hexdigest()
        digest.add(first * PIECE, DATA[first * PIECE : last * PIECE])
    assert digest.complete and digest.hexdigest() == tensor_digest(DATA)


def test_any_array_is_taken_by_its_bytes() -> None:
    values = np.arange(1000, dtype=np.float32).reshape(10, 100)
    assert tensor_digest(values) == tensor_digest(values.tobytes()) == tensor_digest(memoryview(values))


@pytest.mark.parametrize(
    ("start", "length"), [(1, PIECE), (0, 5), (PIECE, PIECE - 1), (5 * PIECE, 778), (-PIECE, PIECE)]
)
def test_parts_of_pieces_are_refused(start: int, length: int) -> None:
    with pytest.raises(ValueError, match="not whole pieces"):
        TensorDigest(len(DATA)).add(start, bytes(length))


@given(st.lists(st.integers(1, len(DATA) - 1), max_size=6, unique=True), st.integers(0, 2**30))
def test_a_write_log_proves_every_byte(cuts: list[int], seed: int) -> None:
    edges = [0, *sorted(cuts), len(DATA)]
    spans = list(pairwise(edges))
    random.Random(seed).shuffle(spans)
    log = WriteLog(len(DATA))
    view = memoryview(DATA)
    for first, last in spans:
        log.add(first, view[first:last])
    assert log.gap() == ""
    assert _disagreements(log, DATA) == []
    position = seed % len(DATA)
    damaged = bytearray(DATA)
    damaged[position] ^= 1
    wrong = _disagreements(log, bytes(damaged))
    assert len(wrong) == 1
    first, last = map(int, wrong[0].split(" to "))
    assert first <= position < last


def _disagreements(log: WriteLog, content: bytes) -> list[str]:
    found = TensorDigest(len(content))
    found.add(0, content)
    return log.disagreements(found, lambda start, length: memoryview(content)[start : start + length])


def test_gaps_and_overlaps_of_writes_are_named() -> None:
    log = WriteLog(100)
    assert log.gap() == "bytes 0 to 100 were not written"
    log.add(0, memoryview(bytes(40)))
    log.add(60, memoryview(bytes(40)))
    assert log.gap() == "bytes 40 to 60 were not written"
    log.add(39, memoryview(bytes(21)))
    assert log.gap() == "byte 39 was written twice"
    assert WriteLog(0).gap() == ""


def test_a_write_log_stays_small_and_still_sees_overlaps() -> None:
    log = WriteLog(100_000)
    for number in range(5000):  # two threads, each with a half of its own
        for start in (10 * number, 50_000 + 10 * number):
            log.add(start, memoryview(bytes(10)))
    assert log.gap() == "" and len(log.spans) <= 258
    log.add(500, memoryview(bytes(3)))
    assert log.gap() == "byte 500 was written twice"


@pytest.mark.parametrize("seed", range(3))
def test_scattered_writes_are_joined_in_the_end(seed: int) -> None:
    order = list(range(10_000))
    random.Random(seed).shuffle(order)
    log = WriteLog(10_000)
    for number in order:
        log.add(number, memoryview(b"x"))
    assert log.gap() == ""


FLOATS = {"F16": np.float16, "F32": np.float32, "F64": np.float64}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
def test_every_nonfinite_value_is_found(dtype: str, value: float) -> None:
    rng = np.random.default_rng(0)
    limits = np.finfo(FLOATS[dtype])
    values = np.concatenate([rng.normal(size=1000), [limits.max, limits.min, limits.tiny, -0.0, 0.0]])
    clean = values.astype(FLOATS[dtype])
    assert not has_nonfinite(clean, dtype) and nonfinite_positions(clean, dtype).size == 0
    clean[[3, 998]] = value
    assert has_nonfinite(clean, dtype) and nonfinite_positions(clean, dtype).tolist() == [3, 998]


@pytest.mark.parametrize(
    ("dtype", "torch_name"),
    [
        ("BF16", "bfloat16"),
        ("F8_E4M3", "float8_e4m3fn"),
        ("F8_E5M2", "float8_e5m2"),
        ("F16", "float16"),
        ("F8_E4M3FNUZ", "float8_e4m3fnuz"),
        ("F8_E5M2FNUZ", "float8_e5m2fnuz"),
        ("F8_E8M0", "float8_e8m0fnu"),
    ],
)
def test_all_bit_patterns_agree_with_torch(dtype: str, torch_name: str) -> None:
    import torch

    kind = getattr(torch, torch_name)
    bits = torch.arange(2 ** (8 * kind.itemsize), dtype=torch.int32).to(
        torch.uint8 if kind.itemsize == 1 else torch.uint16
    )
    expected = torch.nonzero(~torch.isfinite(bits.view(kind).float())).flatten().tolist()
    assert nonfinite_positions(bits.numpy(), dtype).tolist() == expected
    assert [n for n in range(len(bits)) if has_nonfinite(bits[n : n + 1].numpy(), dtype)] == expected


def test_complex_and_integers() -> None:
    assert has_nonfinite(np.array([1 + 1j * np.inf], np.complex64), "C64")
    assert not has_nonfinite(np.full(9, 255, np.uint8), "U8") and not has_nonfinite(b"", "BF16")
