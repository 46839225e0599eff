"""Where every byte of an output will stand, known before the first one is computed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smelt.core.errors import OutputError, Problem, did_you_mean
from smelt.core.types import ITEMSIZE, TensorSpec

INDEX = "model.safetensors.index.json"
#: tensor data begins at a power of two between these, about a thousandth of the file: large writes and maps fall on
#: whole pages, in large files on huge ones, which cost the kernel less
ALIGNMENT, HUGE = 4096, 2 * 2**20


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file: its header, where its data begins, and the absolute offset of each tensor in order."""

    file: str
    text: bytes
    start: int
    offsets: Mapping[str, int]
    size: int

    @property
    def header(self) -> bytes:
        """All bytes before the data: length, JSON, spaces (of which a large file has up to 2 MiB: not kept)."""
        return (self.start - 8).to_bytes(8, "little") + self.text.ljust(self.start - 8)


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """All files of weights of an output, as plain data."""

    shards: tuple[Shard, ...]
    specs: Mapping[str, TensorSpec]
    shard_of: Mapping[str, int]
    metadata: Mapping[str, str]

    @property
    def data_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.nbytes for spec in self.specs.values())

    @property
    def file_bytes(self) -> int:
        """Bytes of all files, headers included."""
        return sum(shard.size for shard in self.shards)

    def place(self, name: str) -> tuple[int, int]:
        """Shard number and absolute offset of a tensor."""
        number = self.shard_of[name]
        return number, self.shards[number].offsets[name]

    def index(self) -> dict[str, Any] | None:
        """The content of the index file; None for a single file."""
        if len(self.shards) == 1:
            return None
        weight_map = {name: self.shards[number].file for name, number in sorted(self.shard_of.items())}
        return {"metadata": {"total_size": self.data_bytes}, "weight_map": weight_map}


def plan_shards(
    specs: Sequence[TensorSpec], shard_size: int, *, metadata: Mapping[str, str] | None = None
) -> ShardLayout:
    """Lay tensors out in the given order over files of at most ``shard_size`` data bytes (0: one file).

    A tensor larger than ``shard_size`` gets a file to itself. The same arguments give the same bytes.

    >>> layout = plan_shards([TensorSpec("a", "F32", (2, 3)), TensorSpec("b", "F32", (2,))], 24)
    >>> [shard.file for shard in layout.shards], layout.place("b")
    (['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'], (1, 4096))
    """
    _check_specs(specs)
    metadata = {**(metadata or {}), "format": "pt"}
    groups = _group(specs, shard_size)
    count = len(groups)
    shards = []
    for number, group in enumerate(groups, 1):
        file = "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
        shards.append(_build_shard(file, group, metadata))
    shard_of = {spec.name: number for number, group in enumerate(groups) for spec in group}
    return ShardLayout(tuple(shards), {spec.name: spec for spec in specs}, shard_of, metadata)


def _check_specs(specs: Sequence[TensorSpec]) -> None:
    """Refuse what no safetensors file can hold."""
    problems = [] if specs else [Problem("no tensors to write", where="output")]
    seen: set[str] = set()
    for spec in specs:
        where = f"output tensor {spec.name!r}"
        if spec.dtype not in ITEMSIZE:
            problems.append(
                Problem(f"unknown dtype {spec.dtype!r}", where, fix=did_you_mean(spec.dtype, list(ITEMSIZE)))
            )
        if any(type(n) is not int or n < 0 for n in spec.shape):
            problems.append(Problem(f"impossible shape {spec.shape}", where))
        if spec.name in seen or spec.name == "__metadata__":
            problems.append(Problem("the name is taken", where, expected="every name once"))
        seen.add(spec.name)
    if problems:
        raise OutputError(problems)


def _group(specs: Sequence[TensorSpec], shard_size: int) -> list[list[TensorSpec]]:
    groups: list[list[TensorSpec]] = [[]]
    filled = 0
    for spec in specs:
        if shard_size > 0 and groups[-1] and filled + spec.nbytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(spec)
        filled += spec.nbytes
    return groups


def _alignment(data_bytes: int) -> int:
    """Where the data of a file of so many bytes begins to be a multiple of.

    >>> _alignment(1000), _alignment(70_000_000), _alignment(5_000_000_000)
    (4096, 65536, 2097152)
    """
    return min(HUGE, max(ALIGNMENT, 1 << max(data_bytes // 1024, 1).bit_length() - 1))


def _build_shard(file: str, specs: list[TensorSpec], metadata: Mapping[str, str]) -> Shard:
    """A file in which tensors of many whole pages come first, so that few tensors lie across page boundaries; all lie
    at multiples of their elements' size."""
    alignment = _alignment(sum(spec.nbytes for spec in specs))
    specs = sorted(specs, key=lambda spec: -(min(spec.nbytes & -spec.nbytes, alignment) or alignment))
    offsets, size = _offsets(specs)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    for spec in specs:
        begin = offsets[spec.name]
        header[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [begin, begin + spec.nbytes],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    start = -(-(8 + len(text)) // alignment) * alignment
    absolute = {name: start + begin for name, begin in offsets.items()}
    return Shard(file, text, start, absolute, start + size)


def _offsets(specs: list[TensorSpec]) -> tuple[dict[str, int], int]:
    """Offsets within the data part, without holes, and their sum."""
    offsets, reached = {}, 0
    for spec in specs:
        offsets[spec.name] = reached
        reached += spec.nbytes
    return offsets, reached
