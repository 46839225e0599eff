"""Control vectors in GGUF files, as repeng and llama.cpp exchange them: read with care, and written.

Such a file holds one tensor ``direction.N`` for each layer N, meant to be added to the *output* of layer N.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from smelt.core.errors import CheckpointError, LatentError

MAGIC = b"GGUF"
ALIGNMENT = 32
ARCHITECTURE = "controlvector"
SCALARS = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?"))) | {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY, UINT32 = 8, 9, 4
F32, F16, F64, BF16 = 0, 1, 28, 30
WIDTHS = {F32: 4, F16: 2, F64: 8, BF16: 2}

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ControlFile:
    """What a control vector file says: its directions by layer, the model family, all other keys."""

    directions: Mapping[int, Vector]
    model_hint: str = ""
    keys: Mapping[str, Any] = field(default_factory=dict)


class _Cursor:
    """Walks through the bytes of a file and refuses to step past their end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def fail(self, what: str, **more: str) -> CheckpointError:
        return CheckpointError(what, where=str(self.path), **more)

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise self.fail(f"the file ends at byte {len(self.data)}", expected=f"data up to byte {end}")
        piece, self.at = self.data[self.at : end], end
        return piece

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError as error:
            raise self.fail("a name in the header is not UTF-8") from error

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY or depth > 4:
            raise self.fail(f"unknown GGUF value type {kind}" if kind != ARRAY else "arrays nested too deep")
        item, count = self.number("I"), self.number("Q")
        if count > len(self.data) - self.at:
            raise self.fail(f"an array claims {count} items", expected="no more than the file has bytes")
        return [self.value(item, depth + 1) for _ in range(count)]


def read_gguf(path: str | Path) -> ControlFile:
    """The directions in a control vector file; any other GGUF file is refused."""
    path = Path(path)
    if not path.is_file() or path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty" if path.is_file() else f"no file {path}")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _parse(_Cursor(data, path))


def _parse(cursor: _Cursor) -> ControlFile:
    tensors, pairs = _header(cursor)
    keys = _keys(cursor, pairs)
    if keys.get("general.architecture") != ARCHITECTURE:
        found = f"architecture {keys.get('general.architecture')!r}"
        raise cursor.fail(found, expected=f"{ARCHITECTURE!r}: this is no control vector")
    infos = [_tensor_info(cursor) for _ in range(tensors)]
    alignment = keys.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise cursor.fail(f"general.alignment is {alignment!r}", expected="a positive whole number")
    start = -(-cursor.at // alignment) * alignment
    directions: dict[int, Vector] = {}
    for name, shape, kind, offset in infos:
        if name.startswith("direction."):
            layer = _layer(cursor, name, directions)
            directions[layer] = _tensor(cursor, name, shape, kind, start + offset)
    if not directions:
        raise cursor.fail("no tensor direction.N")
    hint = str(keys.get(f"{ARCHITECTURE}.model_hint", ""))
    return ControlFile(dict(sorted(directions.items())), hint, keys)


def _header(cursor: _Cursor) -> tuple[int, int]:
    magic = cursor.take(4)
    if magic != MAGIC:
        raise cursor.fail(f"the file starts with {magic!r}", expected=f"{MAGIC!r}: this is no GGUF file")
    version = cursor.number("I")
    if version not in (2, 3):
        expected = "version 2 or 3, little-endian"
        raise cursor.fail(f"GGUF version {version}", expected=expected)
    return cursor.number("Q"), cursor.number("Q")


def _keys(cursor: _Cursor, pairs: int) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for _ in range(pairs):
        name = cursor.text()
        keys[name] = cursor.value(cursor.number("I"))
    return keys


def _tensor_info(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name, rank = cursor.text(), cursor.number("I")
    if rank > 4:
        raise cursor.fail(f"tensor {name!r} has {rank} dimensions", expected="at most 4")
    shape = tuple(cursor.number("Q") for _ in range(rank))
    return name, shape, cursor.number("I"), cursor.number("Q")


def _layer(cursor: _Cursor, name: str, known: Mapping[int, Vector]) -> int:
    number = name.removeprefix("direction.")
    if not number.isdecimal() or int(number) in known:
        raise cursor.fail(f"tensor {name!r}", expected="direction.N with a whole number N, each once")
    return int(number)


def _tensor(cursor: _Cursor, name: str, shape: tuple[int, ...], kind: int, at: int) -> Vector:
    if kind not in WIDTHS:
        raise cursor.fail(f"tensor {name!r} has GGML type {kind}", expected="F32, F16, BF16 or F64")
    if len(shape) == 0 or math.prod(shape) != max(shape):
        raise cursor.fail(f"tensor {name!r} has shape {shape}", expected="one vector")
    cursor.at = at
    raw = cursor.take(math.prod(shape) * WIDTHS[kind])
    if kind == BF16:
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, {F32: "<f4", F16: "<f2", F64: "<f8"}[kind]).astype(np.float32)


def write_gguf(path: str | Path, directions: Mapping[int, Vector], model_hint: str = "") -> None:
    """A control vector file that repeng and llama.cpp read; directions are stored as float32 by layer."""
    if not directions:
        raise LatentError("no directions to write", where=str(path))
    head = [MAGIC, struct.pack("<IQQ", 3, len(directions), 3)]
    head += [_text("general.architecture"), struct.pack("<I", STRING), _text(ARCHITECTURE)]
    head += [_text(f"{ARCHITECTURE}.model_hint"), struct.pack("<I", STRING), _text(model_hint)]
    head += [_text(f"{ARCHITECTURE}.layer_count"), struct.pack("<II", UINT32, len(directions))]
    body: list[bytes] = []
    size = 0
    for layer, vector in sorted(directions.items()):
        raw = np.ascontiguousarray(vector, dtype="<f4").tobytes()
        head += [_text(f"direction.{layer}"), struct.pack("<IQIQ", 1, vector.size, F32, size)]
        body.append(_aligned(raw))
        size += len(body[-1])
    write_whole(Path(path), _aligned(b"".join(head)) + b"".join(body))


def write_whole(path: Path, data: bytes) -> Path:
    """All or nothing: a file beside the target, then one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(data)
    partial.replace(path)
    return path


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _aligned(raw: bytes) -> bytes:
    return raw + b"\0" * (-len(raw) % ALIGNMENT)
