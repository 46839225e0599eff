"""Small helpers on text and JSON that every part of this room uses."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from smelt.core.errors import EvaluationError


def digest(value: Any) -> str:
    """sha256 of a value's canonical JSON (of the text itself for a string), in hex.

    >>> digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})
    True
    """
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def question_key(text: str) -> str:
    """One value for texts that differ in white space only: what makes two questions the same."""
    return digest(" ".join(text.split()))


def mend(text: str) -> str:
    """A text that can be sent: half a surrogate pair becomes the replacement character.

    >>> mend("a" + chr(0xD83D))
    'a\ufffd'
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_text(path: Path) -> str:
    """The UTF-8 text of a file, or an error that names it."""
    if not path.is_file():
        raise EvaluationError("no such file", where=str(path), fix="check the path")
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EvaluationError(
            f"not UTF-8 text (byte {error.start})", where=str(path), expected="a JSONL or JSON text file"
        ) from None


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line or item number, object) of a JSONL file, or of a JSON file that holds one list of objects."""
    text = read_text(path)
    rows: Iterator[tuple[int, Any]]
    if text.lstrip().startswith("["):
        rows = iter(enumerate(_parse(text, path, 0), 1))
    else:
        # not str.splitlines: it also breaks at U+2028, which JSON allows inside a string
        lines = enumerate(text.split("\n"), 1)
        rows = ((number, _parse(line, path, number)) for number, line in lines if line.strip())
    for number, row in rows:
        if not isinstance(row, dict):
            raise EvaluationError(
                f"a {type(row).__name__}", where=f"{path}:{number}", expected="one JSON object a line"
            )
        yield number, row


def _parse(text: str, path: Path, number: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{path}:{number or error.lineno}"
        raise EvaluationError(
            f"not JSON: {error.msg} at column {error.colno}", where=where, expected="one JSON object a line"
        ) from None


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old text or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # half a surrogate pair, which a byte-level tokenizer can leave, is written as its JSON escape
        with beside.open("w", encoding="utf-8", newline="\n", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise EvaluationError(
            f"cannot be written: {error.strerror or error}", where=str(path), fix="choose another path"
        ) from None
    finally:
        beside.unlink(missing_ok=True)


def write_jsonl(path: Path, rows: Iterator[Mapping[str, Any]] | list[dict[str, Any]]) -> None:
    """Write objects as JSONL, atomically."""
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
