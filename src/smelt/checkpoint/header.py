"""The header of a safetensors file: read, bounded and checked before anything is believed."""

from __future__ import annotations

import os
from math import prod
from operator import itemgetter
from pathlib import Path
from typing import Any

from smelt.checkpoint.files import parse_json, read_some
from smelt.checkpoint.problems import Problems
from smelt.core.errors import did_you_mean
from smelt.core.types import ITEMSIZE, TensorMeta

MAX_HEADER = 100_000_000
_MAX_DIMS = 64
_LIMIT = 2**63
_PACKED = ("F4", "F6_E2M3", "F6_E3M2")


def read_header(path: Path, fd: int, problems: Problems) -> tuple[dict[str, str], list[TensorMeta]]:
    """Metadata and tensors of one safetensors file, in the order of their bytes; problems are noted."""
    size = os.fstat(fd).st_size
    raw = _header_bytes(path, fd, size, problems)
    header = None if raw is None else parse_json(raw.rstrip(b" "), path, problems)
    if raw is None or header is None:
        return {}, []
    metadata = _metadata(header.pop("__metadata__", None), path, problems)
    start = 8 + len(raw)
    spans = []
    for name, entry in header.items():
        meta = _sound_entry(name, entry, start, path)
        if meta is None:
            _diagnose(name, entry, path, problems)
        else:
            spans.append((meta.offset, start + entry["data_offsets"][1], meta))
    spans.sort(key=itemgetter(0, 1))
    if len(spans) == len(header):
        _check_coverage(spans, start, size, path, problems)
    return metadata, [meta for _, _, meta in spans]


def _header_bytes(path: Path, fd: int, size: int, problems: Problems) -> bytes | None:
    """The JSON part of the file, once its length is known to be sane."""
    first = read_some(fd, 0, 9)
    if len(first) < 9:
        problems.add(f"is {size} bytes long, too short for a safetensors header", path, fix=what_else(first))
        return None
    length = int.from_bytes(first[:8], "little")
    if length > MAX_HEADER or first[8:9] != b"{":
        foreign = what_else(read_some(fd, 0, 64))
        what = f"does not start like safetensors (its header would be {length} bytes long)"
        problems.add(what, path, expected=f"a JSON header of at most {MAX_HEADER} bytes", fix=foreign)
        return None
    if 8 + length > size:
        what = f"header of {length} bytes is longer than the file of {size} bytes"
        problems.add(what, path, fix="the file is truncated; fetch it again")
        return None
    return read_some(fd, 8, length)


def what_else(first: bytes) -> str:
    """Advice when the first bytes are those of something known."""
    if first.startswith(b"version https://git-lfs"):
        return "this is a git-lfs pointer, not the file; run 'git lfs pull'"
    if first[:4] == b"PK\x03\x04" or first[:2] in (b"\x80\x02", b"\x80\x04"):
        return "this looks like a torch file; rename it to .bin"
    if first[:4] == b"GGUF":
        return "this is a GGUF file, which is not read here"
    if first.lstrip()[:1] == b"<":
        return "this looks like a web page saved instead of the file"
    return "the file is corrupt or another format; fetch it again"


def _metadata(value: Any, path: Path, problems: Problems) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
        return value
    problems.add("__metadata__ is not a map of strings to strings", path)
    return {}


def _sound_entry(name: str, entry: Any, start: int, path: Path) -> TensorMeta | None:
    """One tensor of the header, or None when anything about it is wrong. Headers hold 100 000 of these."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        need = ITEMSIZE[dtype]
        for length in shape:
            if type(length) is not int or not 0 <= length < _LIMIT:
                return None
            need *= length
        plain = type(begin) is type(end) is int and type(shape) is list and len(shape) <= _MAX_DIMS
        if plain and begin >= 0 and end - begin == need and end < _LIMIT:
            return TensorMeta(name, dtype, tuple(shape), path, start + begin)
    except (KeyError, TypeError, ValueError):
        pass
    return None


def _diagnose(name: str, entry: Any, path: Path, problems: Problems) -> None:
    """Say what is wrong with a header entry that is not sound."""
    fault = _entry_fault(entry)
    if fault is None:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        expected = f"{prod(shape) * ITEMSIZE[dtype]} for {dtype} of shape {shape}"
        fault = f"spans {end - begin} bytes", expected, ""
    problems.add(fault[0], path, name, expected=fault[1], fix=fault[2])


def _entry_fault(entry: Any) -> tuple[str, str, str] | None:
    """What is wrong with the fields of a header entry by themselves: what, expected, advice."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        return "header entry is incomplete", "dtype, shape and data_offsets", ""
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype in _PACKED:
        return f"dtype {dtype} packs several values into a byte, which is not read here", "", ""
    if not isinstance(dtype, str) or dtype not in ITEMSIZE:
        return f"unknown dtype {dtype!r:.40}", "", did_you_mean(str(dtype)[:40], list(ITEMSIZE))
    if not isinstance(shape, list) or len(shape) > _MAX_DIMS or not all(_is_count(n) for n in shape):
        return f"impossible shape {shape!r:.80}", "a list of whole numbers, none negative", ""
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(n) for n in offsets):
        return f"impossible data_offsets {offsets!r:.80}", "[begin, end]", ""
    if offsets[1] < offsets[0]:
        return f"reversed data_offsets {offsets}", "begin <= end", ""
    return None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LIMIT


def _check_coverage(
    spans: list[tuple[int, int, TensorMeta]], start: int, size: int, path: Path, problems: Problems
) -> None:
    """Tensors must tile the data part of the file: no overlap, no hole, no byte beyond."""
    reached, before = start, ""
    for begin, end, meta in spans:
        if begin < reached:
            problems.add(f"overlaps {before!r:.120} by {reached - begin} bytes", path, meta.name)
        elif begin > reached:
            problems.add(f"a hole of {begin - reached} bytes stands before it", path, meta.name)
        reached = max(reached, end)
        before = meta.name
    if reached > size:
        lost = [meta.name for _, end, meta in spans if end > size]
        what = f"the file ends at byte {size}, {reached - size} bytes early ({len(lost)} tensors incomplete)"
        problems.add(what, path, lost[0], fix="the file is truncated; fetch it again")
    elif reached < size:
        problems.add(f"{size - reached} bytes after the last tensor belong to nothing", path)
