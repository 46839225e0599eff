"""The rows of a sweep on disk: append-only JSONL with one writer; a row counts once its line is whole."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from smelt.core.errors import LatentError

Row = dict[str, Any]
START = b'{"key": "'  # how every line begins


class RowFile:
    """Rows by key; opening it locks the file and cuts a last line that a crash left unfinished."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: dict[str, Row] = {}
        self._file = -1

    def __enter__(self) -> RowFile:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            what = f"cannot be opened: {error.strerror}"
            raise LatentError(what, where=str(self.path), fix="choose another --out") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError:
            self.close()
            fix = "wait for it, or choose another --out"
            raise LatentError("another sweep is writing this file", where=str(self.path), fix=fix) from None
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file free."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def append(self, row: Row) -> None:
        """Write a row; when this returns it survives a crash."""
        view = memoryview((json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode())
        while view:
            view = view[os.write(self._file, view) :]
        os.fsync(self._file)
        self.rows[row["key"]] = row

    def _read(self) -> None:
        data = self.path.read_bytes()
        kept = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:kept].split(b"\n")[:-1], 1):
            row = self._parsed(line, number)
            self.rows[row["key"]] = row
        torn = data[kept:]
        if torn[: len(START)] != START[: len(torn)]:
            raise self._foreign(data[:kept].count(b"\n") + 1)
        os.ftruncate(self._file, kept)

    def _parsed(self, line: bytes, number: int) -> Row:
        try:
            row = json.loads(line)
            if isinstance(row["key"], str) and row["status"] in ("ok", "impossible"):
                return dict(row)
        except (ValueError, KeyError, TypeError):
            pass
        raise self._foreign(number)

    def _foreign(self, number: int) -> LatentError:
        where = f"{self.path}:{number}"
        return LatentError("not a row that a sweep wrote", where=where, fix="choose another --out")
