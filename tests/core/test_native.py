"""Compiled functions: kept, found again, never run when damaged or when somebody else could have put them there."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smelt.core import native


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for compiled code, and nothing loaded yet."""
    monkeypatch.setattr(native, "_LOADED", {})
    monkeypatch.setattr(native, "_folders", lambda: [tmp_path / "native"])
    return tmp_path / "native"


def times(factor: int, calls: list[int] | None = None) -> Callable[[], Callable[..., Any]]:
    def make() -> Callable[..., Any]:
        if calls is not None:
            calls.append(factor)
        return lambda value: value * factor

    return make


def test_a_function_is_compiled_once_and_found_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    assert native.load(b"times 3", 1, times(3, made)).call(14) == 42
    assert native.load(b"times 3", 1, times(3, made)).call(-2) == -6
    monkeypatch.setattr(native, "_LOADED", {})  # as in another process
    assert native.load(b"times 3", 1, times(3, made)).call(5) == 15
    assert made == [3] and len(list(cache.iterdir())) == 1
    assert native.load(b"times 4", 1, times(4, made)).call(5) == 20
    assert made == [3, 4]


def test_damaged_code_is_made_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native.load(b"times 3", 1, times(3))
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[:10], whole[:-1], whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]):
        file.write_bytes(damaged)
        monkeypatch.setattr(native, "_LOADED", {})
        made: list[int] = []
        assert native.load(b"times 3", 1, times(3, made)).call(2) == 6
        assert made == [3] and native._read(file)


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_others_can_write_to_is_not_trusted(
    cache: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    native.load(b"times 3", 1, times(3))
    cache.chmod(mode)
    monkeypatch.setattr(native, "_LOADED", {})
    made: list[int] = []
    assert native.load(b"times 3", 1, times(3, made)).call(2) == 6
    assert made == [3]


def test_a_link_to_a_folder_is_not_trusted(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    cache.symlink_to(tmp_path / "elsewhere")
    assert native.load(b"times 3", 1, times(3)).call(2) == 6
    assert not list((tmp_path / "elsewhere").iterdir())


def test_nowhere_to_keep_it_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(native, "_LOADED", {})
    monkeypatch.setattr(native, "_folders", lambda: [tmp_path / "file" / "native"])
    assert native.load(b"times 3", 1, times(3)).call(2) == 6


def test_many_threads_may_ask_at_once(cache: Path) -> None:
    """Whoever comes second must get the code that stays, not code that goes when the first is done."""
    found: list[native.Native] = []
    gate = threading.Barrier(4)

    def ask() -> None:
        gate.wait()
        found.append(native.load(b"times 7", 1, times(7)))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(item) for item in found}) == 1 and found[0].call(6) == 42


def test_what_numba_would_raise_comes_back_as_a_number(cache: Path) -> None:
    def make() -> Callable[..., Any]:
        def fails(value: int) -> int:
            if value > 3:
                raise ValueError
            return value

        return fails

    assert native.load(b"fails", 1, make).call(2) == 2
    assert native.load(b"fails", 1, make).call(4) == native.FAILED


def test_the_cache_can_be_moved(tmp_path: Path) -> None:
    code = "from smelt.core.native import cache_folder; print(cache_folder())"
    for variables, expected in (
        ({"SMELT_CACHE": str(tmp_path / "a")}, tmp_path / "a"),
        ({"XDG_CACHE_HOME": str(tmp_path)}, tmp_path / "smelt"),
        ({"HOME": str(tmp_path)}, tmp_path / ".cache" / "smelt"),
    ):
        done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
        assert done.stdout.strip() == str(expected)
