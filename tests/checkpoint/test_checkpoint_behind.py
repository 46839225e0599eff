"""The follower: it looks at everything once, writers wait for it, and what goes wrong behind reaches them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from smelt.checkpoint import behind
from smelt.checkpoint.behind import Follower

Check = Callable[[str, int, int], None]


@pytest.fixture
def follower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Check], Follower]]:
    """Followers of one file of 64 bytes, with steps of 4 bytes, 8 of which may wait."""
    monkeypatch.setattr(behind, "STEP", 4)
    monkeypatch.setattr(behind, "AHEAD", 8)
    path = tmp_path / "file"
    path.write_bytes(bytes(64))
    with path.open("r+b") as file:
        yield lambda check: Follower([file.fileno()], check, lambda name: (0, 0))


class Gate:
    """A check that waits to be let through; then it notes the span, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.open, self.reached, self.error = threading.Event(), threading.Event(), error
        self.seen: list[tuple[str, int, int]] = []

    def __call__(self, name: str, start: int, length: int) -> None:
        self.reached.set()
        assert self.open.wait(30)
        if self.error is not None:
            raise self.error
        self.seen.append((name, start, length))


def _wait_ahead(follower: Follower, gate: Gate) -> tuple[threading.Thread, list[BaseException]]:
    """A writer that has written too far ahead and stands still."""
    follower.note("w", 0, 4)
    assert gate.reached.wait(30)  # the follower took these and looks at them
    follower.note("w", 4, 8)  # as much as may wait
    told: list[BaseException] = []

    def write() -> None:
        try:
            follower.note("w", 12, 4)
        except OSError as error:
            told.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    writer.join(0.2)
    assert writer.is_alive(), "too much waits to be looked at: the writer waits too"
    return writer, told


def test_everything_is_looked_at_once(follower: Callable[[Check], Follower]) -> None:
    gate = Gate()
    gate.open.set()
    follows = follower(gate)
    spans = [("w", at, 3) for at in range(0, 63, 3)]
    for span in spans:
        follows.note(*span)
    follows.finish()
    assert gate.seen == spans


def test_writers_wait_for_a_follower_that_falls_behind(follower: Callable[[Check], Follower]) -> None:
    gate = Gate()
    follows = follower(gate)
    writer, told = _wait_ahead(follows, gate)
    gate.open.set()
    writer.join(30)
    assert not writer.is_alive() and not told
    follows.finish()
    assert gate.seen == [("w", 0, 4), ("w", 4, 8), ("w", 12, 4)]


def test_what_goes_wrong_behind_reaches_a_writer_that_waits(follower: Callable[[Check], Follower]) -> None:
    gate = Gate(OSError("the disk is gone"))
    follows = follower(gate)
    writer, told = _wait_ahead(follows, gate)
    gate.open.set()
    writer.join(30)
    assert not writer.is_alive() and [str(error) for error in told] == ["the disk is gone"]
    with pytest.raises(OSError, match="the disk is gone"):
        follows.finish()


def test_giving_up_frees_a_writer_that_waits(follower: Callable[[Check], Follower]) -> None:
    gate = Gate()
    follows = follower(gate)
    writer, told = _wait_ahead(follows, gate)
    ending = threading.Thread(target=follows.abandon)
    ending.start()
    writer.join(30)
    assert not writer.is_alive() and not told
    gate.open.set()
    ending.join(30)
    assert not ending.is_alive() and gate.seen == [("w", 0, 4)], "what was not looked at yet is left"
