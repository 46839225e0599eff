"""Builds safetensors files by hand, sound and broken; writes and reads whole checkpoints of known content."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np

from smelt.checkpoint import Checkpoint, CheckpointWriter, open_checkpoint, plan_shards
from smelt.core.types import TensorSpec


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    """One tensor of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def raw_file(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """A safetensors file with any header: an object, text or bytes; ``length`` may lie about it."""
    text = (
        header
        if isinstance(header, bytes)
        else (header if isinstance(header, str) else json.dumps(header)).encode()
    )
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def save(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """A sound safetensors file of float32 arrays."""
    header, data = {}, b""
    for name, values in tensors.items():
        raw = values.astype("<f4").tobytes()
        header[name] = entry("F32", list(values.shape), len(data), len(data) + len(raw))
        data += raw
    return raw_file(path, header, data)


def sharded(
    folder: Path, shards: dict[str, dict[str, np.ndarray]], weight_map: dict[str, str] | None = None
) -> Path:
    """A directory of shards and their index."""
    folder.mkdir(exist_ok=True)
    for file, tensors in shards.items():
        save(folder / file, tensors)
    found = {name: file for file, tensors in shards.items() for name in tensors}
    content = {"metadata": {}, "weight_map": found if weight_map is None else weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return folder


def read_all(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The bytes of every tensor."""
    content = {}
    for name, meta in checkpoint.tensors.items():
        buffer = bytearray(meta.nbytes)
        checkpoint.read_into(meta, 0, buffer)
        content[name] = bytes(buffer)
    return content


def example_specs() -> list[TensorSpec]:
    """Tensors of several kinds: larger than a piece, odd, scalar, empty."""
    return [
        TensorSpec("model.embed_tokens.weight", "BF16", (1000, 333)),
        TensorSpec("model.layers.0.up.weight", "F32", (129, 257)),
        TensorSpec("model.layers.0.scale", "F32", ()),
        TensorSpec("model.layers.0.none", "F16", (0, 4)),
        TensorSpec("model.norm.weight", "BF16", (333,)),
    ]


def example_layout(shard_size: int = 0) -> Any:
    """A layout of the example tensors."""
    return plan_shards(example_specs(), shard_size)


def content_of(spec: TensorSpec, seed: int = 0) -> bytes:
    """Finite values for a tensor: every byte below 0x3c, so that no exponent is all ones."""
    rng = np.random.default_rng([seed, *spec.name.encode()])
    return rng.integers(0, 0x3C, spec.nbytes, dtype=np.uint8).tobytes()


def strays() -> list[str]:
    """Threads that should have ended; tqdm keeps one of its own once any test has shown a bar."""
    return [
        thread.name
        for thread in threading.enumerate()
        if thread is not threading.main_thread() and thread.name != "tqdm_monitor"
    ]


def write_all(writer: CheckpointWriter, *, seed: int = 0, block: int = 100_001) -> None:
    """Write every example tensor in blocks."""
    for spec in example_specs():
        content = content_of(spec, seed)
        for start in range(0, len(content), block):
            writer.write(spec.name, start, content[start : start + block])


def make(target: Path, *, seed: int = 0, overwrite: bool = False, shard_size: int = 0) -> None:
    """A finished checkpoint of the example tensors."""
    with CheckpointWriter(target, example_layout(shard_size), overwrite=overwrite) as writer:
        write_all(writer, seed=seed)
        writer.add_json("config.json", {"seed": seed})
        writer.commit()


def is_complete(target: Path, seed: int = 0) -> bool:
    """Whether the target holds the example tensors of a seed."""
    with open_checkpoint(target) as checkpoint:
        return read_all(checkpoint) == {spec.name: content_of(spec, seed) for spec in example_specs()}


def left_over(folder: Path) -> list[str]:
    """Names in a folder."""
    return sorted(path.name for path in folder.iterdir())
