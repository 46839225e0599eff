"""The compiled reader and writer do what the plain ones do: the same fingerprints, the same bytes, the same alarms."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

from smelt.checkpoint import TensorDigest, tensor_digest
from smelt.checkpoint.digest import PIECE
from smelt.checkpoint.finite import EXPONENTS, has_nonfinite
from smelt.checkpoint.swift import SHORT, SwiftReader, write

random = np.random.default_rng(5)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def noise(size: int) -> np.ndarray:
    return random.integers(0, 256, size).astype(np.uint8)


@pytest.mark.parametrize(
    "length",
    [241, 255, 256, 257, 1023, 1024, 1025, 1087, 1088, 1089, 2048, 5000, PIECE - 1, PIECE, PIECE + 1],
)
@pytest.mark.parametrize("shift", [0, 1])
def test_fingerprints_are_those_of_xxhash(length: int, shift: int) -> None:
    from numba import njit

    from smelt.checkpoint.loops import xxh3

    @njit
    def digest(data):  # type: ignore[no-untyped-def]
        return xxh3(data.ctypes.data, data.size, 0, np.empty(16, np.uint64).ctypes.data)

    for data in (noise(length + shift)[shift:], np.zeros(length, np.uint8), np.full(length, 255, np.uint8)):
        assert int(digest(data)) == xxh3_64_intdigest(data)


@pytest.mark.parametrize("size", [1, SHORT, SHORT + 1, PIECE - 1, PIECE, PIECE + SHORT, 3 * PIECE + 1000])
@pytest.mark.parametrize("offset", [0, 4096, 12345])
def test_written_and_read_back(file: int, size: int, offset: int) -> None:
    data, written, read = noise(size), TensorDigest(size), TensorDigest(size)
    long_tail = size % PIECE == 0 or size % PIECE > SHORT
    assert write(file, offset, data, written, 0) is long_tail
    if not long_tail:  # left to the plain way, and nothing claimed
        assert list(written.unseen()) == [(0, size)]
        os.pwrite(file, data, offset)
    back = np.zeros(size, np.uint8)
    status = SwiftReader(file, offset, read, None).read(0, back)
    assert status == (0 if long_tail else -1)
    if long_tail:
        assert (back == data).all()
        assert written.hexdigest() == read.hexdigest() == tensor_digest(data)


def test_spans_that_are_not_whole_pieces_are_left_to_the_plain_way(file: int) -> None:
    data, digest = noise(2 * PIECE), TensorDigest(4 * PIECE)
    for start, size in ((1, PIECE), (0, PIECE - 1), (PIECE, PIECE + 7)):
        assert not write(file, 0, data[:size], digest, start)
        assert SwiftReader(file, 0, digest, None).read(start, data[:size].copy()) == -1
    assert write(file, 0, data, digest, PIECE) and list(digest.unseen()) == [
        (0, PIECE),
        (3 * PIECE, 4 * PIECE),
    ]


@pytest.mark.parametrize("dtype", sorted(EXPONENTS))
@pytest.mark.parametrize("place", [0, 5, PIECE // 8 - 1, PIECE // 8, -1])
def test_nan_and_inf_are_seen_wherever_they_are(file: int, dtype: str, place: int) -> None:
    mask, width = EXPONENTS[dtype]
    words = np.ones(2 * PIECE // width, f"u{width}")
    for bad in (mask, mask | 1, mask | 1 << (8 * width - 1)):
        found = words.copy()
        found[place] = bad
        os.pwrite(file, found.tobytes(), 0)
        out = np.empty(found.nbytes, np.uint8)
        assert SwiftReader(file, 0, None, (mask, width)).read(0, out) == 1 == has_nonfinite(out, dtype)
    found[place] = mask - 1  # the largest finite number
    os.pwrite(file, found.tobytes(), 0)
    assert SwiftReader(file, 0, None, (mask, width)).read(0, out) == 0 == has_nonfinite(out, dtype)


@pytest.mark.parametrize("dtype", sorted(EXPONENTS))
@pytest.mark.parametrize("count", [242, 1000, 1024, 1088, 5001])
def test_every_place_of_a_short_piece_is_looked_at(file: int, dtype: str, count: int) -> None:
    mask, width = EXPONENTS[dtype]
    size = count * 8
    words = random.integers(0, 256, size).astype(np.uint8).view(f"u{width}") & ~np.array(mask, f"u{width}")
    for place in [0, words.size - 1, *random.integers(0, words.size, 20).tolist()]:
        found = words.copy()
        found[place] |= mask
        os.pwrite(file, found.tobytes(), 0)
        out = np.empty(size, np.uint8)
        assert SwiftReader(file, 0, None, (mask, width)).read(0, out) == 1
    os.pwrite(file, words.tobytes(), 0)
    assert SwiftReader(file, 0, None, (mask, width)).read(0, out) == 0
    assert SwiftReader(file, 0, None, (mask, width)).read(0, out[:SHORT]) == -1, (
        "too short to be looked at here"
    )


def test_a_file_that_ends_early_or_cannot_be_used_is_left_to_the_plain_way(file: int) -> None:
    os.pwrite(file, bytes(PIECE), 0)
    digest = TensorDigest(2 * PIECE)
    assert SwiftReader(file, 0, digest, None).read(0, np.empty(2 * PIECE, np.uint8)) == -1
    assert list(digest.unseen()) == [(0, 2 * PIECE)]
    readonly = os.open("/dev/null", os.O_RDONLY)
    try:
        assert not write(readonly, 0, noise(PIECE), digest, 0) and list(digest.unseen()) == [(0, 2 * PIECE)]
    finally:
        os.close(readonly)
