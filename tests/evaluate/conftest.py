"""A live judge server around a real tiny model, and small files of answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from judge_tools import LiveServer, answer_rows, write_rows


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    live = LiveServer(tmp_path_factory.mktemp("server"))
    live.start()
    yield live
    live.kill()


@pytest.fixture
def answers(tmp_path: Path) -> tuple[Path, Path]:
    """Two response files with 12 questions."""
    return (
        write_rows(tmp_path / "a.jsonl", answer_rows("alpha", 12)),
        write_rows(tmp_path / "b.jsonl", answer_rows("beta", 12)),
    )
