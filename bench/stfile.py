"""The little of the safetensors format the measurements need, in numpy, apart from smelt's own reader."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import bf16

ITEMSIZE = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8, "I64": 8}
NUMPY = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "I64": np.int64, "BF16": np.uint16}


def create(path: Path, tensors: Mapping[str, tuple[int, ...]], dtype: str) -> dict[str, int]:
    """Make a file of the right size with its header; returns the byte offset of every tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in sorted(tensors):
        size = prod(tensors[name]) * ITEMSIZE[dtype]
        header[name] = {"dtype": dtype, "shape": list(tensors[name]), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        os.posix_fallocate(file.fileno(), 0, 8 + len(text) + offset)
    return {name: 8 + len(text) + header[name]["data_offsets"][0] for name in tensors}


def save(path: Path, tensors: Mapping[str, NDArray[Any]], dtype: str | None = None) -> None:
    """Write small arrays; ``dtype`` "BF16" takes uint16 patterns, None the arrays' own type."""
    known = {np.dtype(np.float16): "F16", np.dtype(np.float32): "F32", np.dtype(np.float64): "F64"}
    kind = dtype or known[next(iter(tensors.values())).dtype]
    offsets = create(path, {name: value.shape for name, value in tensors.items()}, kind)
    with path.open("r+b") as file:
        for name, value in tensors.items():
            os.pwrite(file.fileno(), np.ascontiguousarray(value).tobytes(), offsets[name])


def header(path: Path) -> tuple[dict[str, Any], int]:
    """Tensor entries of a file and the byte where its data starts."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    return entries, 8 + length


def files_of(model: Path) -> list[Path]:
    """The weight files of a checkpoint folder."""
    index = model / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        return [model / name for name in names]
    return sorted(model.glob("*.safetensors"))


def raw_tensors(model: Path) -> Iterator[tuple[str, str, NDArray[Any]]]:
    """Name, dtype and array of every tensor of a checkpoint, mapped; BF16 as uint16 patterns."""
    for path in files_of(model):
        entries, start = header(path)
        for name, entry in entries.items():
            count = prod(entry["shape"])
            first = start + entry["data_offsets"][0]
            flat = np.memmap(path, NUMPY[entry["dtype"]], "r", first, (count,)) if count else np.empty(0)
            yield name, entry["dtype"], flat.reshape(entry["shape"])


def load(model: Path) -> dict[str, NDArray[Any]]:
    """Every tensor as float32 (or wider when stored so)."""
    tensors = {}
    for name, dtype, array in raw_tensors(model):
        tensors[name] = bf16.to_float32(np.asarray(array)) if dtype == "BF16" else _widened(array)
    return tensors


def _widened(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float32) if array.dtype == np.float16 else np.array(array)
