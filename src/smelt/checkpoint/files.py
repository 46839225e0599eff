"""Positioned reads and writes that finish or fail, and JSON read without trust."""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path
from typing import Any

from smelt.checkpoint.problems import Problems, listing
from smelt.core.errors import CheckpointError

#: JSON side files larger than this are refused before they are read
MAX_JSON = 256 * 2**20


def open_read(path: Path) -> int:
    """A file descriptor for reading; when the process runs out of them, its own limit is raised first."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not be waited for
    except OSError as error:
        if error.errno != errno.EMFILE or not _raise_file_limit():
            raise CheckpointError(f"cannot be opened ({error.strerror})", where=str(path)) from error
    return open_read(path)


def _raise_file_limit() -> bool:
    """Lift the soft limit of open files to the hard one; False when it already stands there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return False
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return True


def fill(fd: int, out: memoryview, offset: int) -> int:
    """Read into ``out`` from ``offset`` until it is full or the file ends; the bytes read."""
    done = 0
    while done < len(out):
        got = os.preadv(fd, [out[done:]], offset + done)
        if got == 0:
            break
        done += got
    return done


def spill(fd: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``."""
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


def read_some(fd: int, offset: int, length: int) -> bytes:
    """At most ``length`` bytes from ``offset``."""
    buffer = bytearray(length)
    return bytes(buffer[: fill(fd, memoryview(buffer), offset)])


def as_bytes(buffer: Any) -> memoryview:
    """Any contiguous buffer as a flat view of bytes."""
    view = buffer if isinstance(buffer, memoryview) else memoryview(buffer)
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def parse_json(
    raw: bytes, file: Path, problems: Problems, *, strict_keys: bool = True
) -> dict[str, Any] | None:
    """A JSON object from bytes nobody vouches for; None, and a problem noted, when it is not one."""
    repeated: list[str] = []

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            seen: set[str] = set()
            repeated.extend(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return made

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=build if strict_keys else None)
    except UnicodeDecodeError as error:
        problems.add(f"is not UTF-8 text (byte {error.start})", file)
    except RecursionError:
        problems.add("is nested too deeply to be read", file)
    except ValueError as error:
        problems.add(f"is not valid JSON ({error})", file)
    else:
        if repeated:
            problems.add(f"duplicate keys: {listing(repeated)}", file, expected="every name once")
        elif not isinstance(value, dict):
            problems.add(f"holds a JSON {type(value).__name__}", file, expected="an object")
        else:
            return value
    return None


def read_json(file: Path, problems: Problems, *, strict_keys: bool = True) -> dict[str, Any] | None:
    """A JSON object from a file of bounded size."""
    try:
        size = file.stat().st_size
        if size > MAX_JSON:
            problems.add(f"is {size} bytes of JSON", file, expected=f"at most {MAX_JSON}")
            return None
        return parse_json(file.read_bytes(), file, problems, strict_keys=strict_keys)
    except OSError as error:
        problems.add(f"cannot be read ({error.strerror})", file)
        return None
