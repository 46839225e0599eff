"""Windows onto tensors in files: the file's bytes at every offset, and an answer where they cannot be had."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from smelt.checkpoint.window import CHUNK, LEAST, Window

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel must answer for pages")
SIZE = CHUNK + 3 * LEAST


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    os.pwrite(fd, np.arange(SIZE // 2, dtype=np.uint16).tobytes(), 0)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("offset", [0, 1, 4095, 4096, 123456])
def test_what_is_seen_is_what_lies_there(file: int, offset: int) -> None:
    window = Window.of(file, offset, SIZE - offset)
    assert window is not None
    for first, end in ((0, 1), (5, 70000), (CHUNK - 3, CHUNK + 3), (SIZE - offset - 7, SIZE - offset)):
        seen = window.view(first, end)
        assert seen is not None and seen.tobytes() == os.pread(file, end - first, offset + first)
        assert not seen.flags.writeable
        del seen
    window.close()
    assert window.view(0, 1) is None and window.at(0, 1) == 0


def test_a_view_outlives_its_window(file: int) -> None:
    window = Window.of(file, 0, SIZE)
    assert window is not None
    seen = window.view(10, 20)
    window.close()
    assert seen is not None and seen.tobytes() == os.pread(file, 10, 10)


def test_a_file_cut_short_is_told_and_does_not_end_the_process(file: int) -> None:
    window = Window.of(file, 0, SIZE)
    assert window is not None and window.at(0, 100)
    os.ftruncate(file, SIZE - 1)
    assert window.at(0, 100) == 0 and window.view(0, 100) is None
    assert Window.of(file, 0, SIZE) is None or Window(file, 0, SIZE).at(0, SIZE) == 0


def test_what_is_small_or_cannot_be_mapped_is_read(file: int) -> None:
    assert Window.of(file, 0, LEAST - 1) is None
    null = os.open("/dev/zero", os.O_RDONLY)
    try:
        window = Window.of(null, 0, LEAST)
        assert window is None or window.at(0, LEAST) == 0
    finally:
        os.close(null)
