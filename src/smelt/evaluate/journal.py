"""The file of judgements: append-only JSONL with one writer; a line counts once it is on disk."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from smelt.core.errors import EvaluationError

Record = dict[str, Any]
START = b'{"key": "'  # how every line begins


class Journal:
    """Judgements by key. Opening it locks the file, drops a last line cut off by a crash, and reads the rest.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "judgements.jsonl"
    >>> with Journal(path) as journal:
    ...     journal.append({"key": "k", "status": "ok", "judgment": "A"})
    >>> with Journal(path) as journal:
    ...     "k" in journal.finished
    True
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.finished: dict[str, Record] = {}
        self.errors: dict[str, Record] = {}  # last error of keys that have no judgement
        self.dropped = 0  # bytes of a torn last line
        self._file = -1

    def __enter__(self) -> Journal:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            what = f"cannot be opened: {error.strerror}"
            raise EvaluationError(what, where=str(self.path), fix="choose another --out") from None
        try:
            self._lock()
            self.finished, self.errors = load_records(
                self.path
            )  # refuses a foreign file before it is touched
            self._repair()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EvaluationError(
                "another judge run is writing this file",
                where=str(self.path),
                fix="wait for it, or use another --out: two runs would judge the same pairs twice",
            ) from None

    def _repair(self) -> None:
        """Cut a last line that has no line end: it was being written when the process died."""
        data = self.path.read_bytes()
        kept = data.rfind(b"\n") + 1
        if kept == len(data):
            return
        try:
            whole = "key" in json.loads(data[kept:])
        except (ValueError, TypeError):
            whole = False
        if whole:
            os.write(self._file, b"\n")
        elif data[kept : kept + len(START)] != START[: len(data) - kept]:
            raise _foreign(self.path, data.count(b"\n") + 1)
        else:
            self.dropped = len(data) - kept
            os.ftruncate(self._file, kept)
        os.fsync(self._file)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one judgement or error and wait until it is on disk. A judged key gets no second one."""
        key = record["key"]
        record = {"key": key, **record}
        if key in self.finished:
            raise EvaluationError(f"{key[:12]} was judged before", where=str(self.path))
        line = (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode(
            "utf-8", "backslashreplace"
        )
        self._write(line)
        if record["status"] == "ok":
            self.finished[key] = record
            self.errors.pop(key, None)
        else:
            self.errors[key] = record

    def _write(self, line: bytes) -> None:
        """All of the line, or, on a full disk, nothing: the next line must not follow half a line."""
        end = os.lseek(self._file, 0, os.SEEK_END)
        try:
            view = memoryview(line)
            while view:
                view = view[os.write(self._file, view) :]
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, end)
            raise


def load_records(path: str | Path) -> tuple[dict[str, Record], dict[str, Record]]:
    """(judgements, errors without a judgement) by key; of two judgements with one key the first counts."""
    finished: dict[str, Record] = {}
    errors: dict[str, Record] = {}
    for record in _lines(Path(path)):
        if record["status"] == "ok":
            finished.setdefault(record["key"], record)
        else:
            errors[record["key"]] = record
    return finished, {key: record for key, record in errors.items() if key not in finished}


def _lines(path: Path) -> Iterator[Record]:
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            if number == len(lines):  # being written, or torn
                return
            record = None
        if not isinstance(record, dict) or not {"key", "status"} <= record.keys():
            raise _foreign(path, number)
        yield record


def _foreign(path: Path, number: int) -> EvaluationError:
    return EvaluationError(
        "not a judgement",
        where=f"{path}:{number}",
        expected="a file that a judge run wrote",
        fix="use another --out, or delete this line",
    )
