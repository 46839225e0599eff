"""Small plain types that several rooms share: dtypes, tensor descriptions, sources of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

#: bytes per element of every safetensors dtype smelt knows, by its name in the file header
ITEMSIZE: dict[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip

#: dtypes whose values a merge may mix
FLOATS = frozenset({"F16", "BF16", "F32", "F64"})

#: recipe and config spelling -> header spelling
DTYPE_NAMES: dict[str, str] = {
    "bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor is, without where it lies."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements; 1 for a scalar, 0 when a dimension is 0."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the dense tensor."""
        return self.numel * ITEMSIZE[self.dtype]


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """A tensor inside a file: element 0 stands at byte ``offset`` of ``file``.

    ``strides`` is None for a dense row-major tensor (always so in safetensors), else in elements.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    strides: tuple[int, ...] | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the dense tensor."""
        return self.numel * ITEMSIZE[self.dtype]


class TensorSource(Protocol):
    """Anything that holds named tensors and hands out their bytes: a checkpoint, an adapter view, a nested merge."""

    @property
    def tensors(self) -> Mapping[str, TensorMeta]: ...

    @property
    def config(self) -> Mapping[str, Any]: ...

    def read_into(self, meta: TensorMeta, start: int, out: memoryview) -> None:
        """Fill ``out`` with bytes [start, start + len(out)) of the dense row-major tensor. Thread-safe."""

    def place(self, meta: TensorMeta) -> tuple[int, int] | None:
        """An open file and the offset at which the dense tensor lies in it; None when it must be asked for."""
