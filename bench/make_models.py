"""Make Llama-shaped checkpoints of any size without torch: a base and three fine-tunes, streamed to disk.

``python -m bench.make_models --size 1.24b``. The weights are Philox noise, so they are the same on every
machine; a fine-tune is ``round(base + delta)`` with a delta of 1e-3, 3e-3 or 1e-2 of the weights' rms, so
that many bfloat16 elements do not change, as in real fine-tunes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import bf16, stfile
from bench.paths import models_dir
from bench.shapes import ALIASES, SIZES, Shape, size_named

BLOCK = 1 << 20  # elements
SHARD_BYTES = 5_000_000_000
SEED = 20240731
WEIGHT_RMS = 0.02
#: rms of a fine-tune's delta over that of the weights; "far" models are for formulas that need an angle
DELTA_RMS: dict[str, dict[str, float]] = {
    "near": {"base": 0.0, "code": 1e-2, "math": 3e-3, "chat": 1e-3},
    "far": {"base": 0.0, "code": 0.7, "math": 0.4, "chat": 1.0},
}
HEADER_DTYPE = {"bfloat16": "BF16", "float32": "F32"}
RECIPE = 1  # raise when the bytes change, so that old caches are made anew

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Target:
    """Where one tensor of one model goes."""

    file: Path
    offset: int


@cache
def _normal_table() -> F32:
    """The normal distribution's quantiles at 65536 equal steps: one look-up per 16 random bits."""
    inverse = NormalDist().inv_cdf
    half = np.array([inverse((i + 0.5) / 65536) for i in range(32768, 65536)], np.float32)
    return np.concatenate([-half[::-1], half])


def noise(seed: int, stream: int, block: int, count: int, *, fine: bool) -> F32:
    """Standard normal noise keyed by (seed, stream, block).

    ``fine`` draws full float32 values (fp32 models, where equal magnitudes would be unnatural); otherwise
    16-bit quantiles, three times faster and finer than bfloat16.
    """
    bits = np.random.Philox(key=np.array([seed, stream << 24 | block], np.uint64))
    if fine:
        return np.random.Generator(bits).standard_normal(count, dtype=np.float32)
    raw = np.asarray(bits.random_raw((count + 3) // 4), np.uint64).view(np.uint16)[:count]
    return _normal_table()[raw]


def shards_of(shape: Shape, itemsize: int, limit: int = SHARD_BYTES) -> list[list[str]]:
    """Tensor names per shard, filled in module order like the Hub's."""
    shards: list[list[str]] = [[]]
    used = 0
    for name, dims in shape.tensors():
        size = prod(dims) * itemsize
        if shards[-1] and used + size > limit:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += size
    return shards


def _lay_out(folder: Path, shape: Shape, dtype: str) -> dict[str, Target]:
    """Create the weight files of one model; returns where each tensor goes."""
    dims = dict(shape.tensors())
    kind = HEADER_DTYPE[dtype]
    shards = shards_of(shape, stfile.ITEMSIZE[kind])
    targets: dict[str, Target] = {}
    for number, names in enumerate(shards, 1):
        single = len(shards) == 1
        file = folder / (
            "model.safetensors" if single else f"model-{number:05}-of-{len(shards):05}.safetensors"
        )
        offsets = stfile.create(file, {name: dims[name] for name in names}, kind)
        targets |= {name: Target(file, offset) for name, offset in offsets.items()}
    if len(shards) > 1:
        total = sum(prod(d) for d in dims.values()) * stfile.ITEMSIZE[kind]
        index = {
            "metadata": {"total_size": total},
            "weight_map": {name: target.file.name for name, target in targets.items()},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return targets


def _write_config(folder: Path, shape: Shape, dtype: str) -> None:
    (folder / "config.json").write_text(json.dumps(shape.config(dtype), indent=2) + "\n")
    generation = {"bos_token_id": 1, "eos_token_id": 2, "do_sample": True, "temperature": 0.7}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    write_tokenizer(folder)


def write_tokenizer(folder: Path) -> None:
    """A small byte-level BPE tokenizer with a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("t", "h"),
        ("th", "e"),
        ("Ġ", "a"),
        ("i", "n"),
        ("e", "r"),
        ("Ġ", "the"),
        ("o", "n"),
        ("in", "g"),
    ]
    words = [*special, *letters, *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 4096,
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    names = {key: settings[key] for key in ("bos_token", "eos_token", "unk_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=2) + "\n")


def _base_block(name: str, stream: int, block: int, count: int, fine: bool) -> F32:
    values = noise(SEED, stream, block, count, fine=fine)
    if name.endswith("norm.weight"):
        return np.float32(1.0) + np.float32(0.1) * values
    values *= np.float32(WEIGHT_RMS)
    return values


class Maker:
    """Fills the files of several models block by block; every block is keyed, so threads need no order."""

    def __init__(
        self, targets: dict[str, dict[str, Target]], shape: Shape, dtype: str, delta_rms: dict[str, float]
    ) -> None:
        self.targets = targets
        self.delta_rms = delta_rms
        self.fine = dtype == "float32"
        self.itemsize = 4 if self.fine else 2
        self.tensors = list(shape.tensors())
        files = {target.file for model in targets.values() for target in model.values()}
        self.handles = {file: os.open(file, os.O_WRONLY) for file in files}

    def jobs(self) -> Iterator[tuple[int, int]]:
        """(tensor, block) of the whole model."""
        for number, (_, dims) in enumerate(self.tensors):
            for block in range((prod(dims) + BLOCK - 1) // BLOCK):
                yield number, block

    def fill(self, job: tuple[int, int]) -> int:
        """Write one block of one tensor into every model; returns bytes written."""
        number, block = job
        name, dims = self.tensors[number]
        count = min(BLOCK, prod(dims) - block * BLOCK)
        base = self._stored(_base_block(name, number, block, count, self.fine))
        start = base if self.fine else bf16.to_float32(base)
        scale = float(np.sqrt(np.mean(np.square(start), dtype=np.float64)))
        written = 0
        for which, (model, tensors) in enumerate(self.targets.items()):
            data = base
            if ratio := self.delta_rms[model]:
                delta = noise(SEED + which, number, block, count, fine=self.fine)
                delta *= np.float32(ratio * scale)
                delta += start
                data = self._stored(delta)
            at = tensors[name]
            written += os.pwrite(self.handles[at.file], data.data, at.offset + block * BLOCK * self.itemsize)
        return written

    def _stored(self, values: F32) -> NDArray[Any]:
        return values if self.fine else bf16.from_float32(values)

    def close(self) -> None:
        for handle in self.handles.values():
            os.close(handle)


def ensure(
    size: str, dtype: str = "bfloat16", *, spread: str = "near", threads: int | None = None
) -> dict[str, Path]:
    """Make the models of a size unless they are there; returns the folder of each."""
    root = models_dir(size, dtype, spread)
    delta_rms = DELTA_RMS[spread]
    stamp = root / "complete.json"
    facts = {"size": size, "dtype": dtype, "seed": SEED, "recipe": RECIPE, "delta_rms": delta_rms}
    folders = {model: root / model for model in delta_rms}
    if stamp.exists() and json.loads(stamp.read_text()) == facts:
        return folders
    shutil.rmtree(root, ignore_errors=True)
    shape = SIZES[size]
    targets = {}
    for model, folder in folders.items():
        folder.mkdir(parents=True)
        targets[model] = _lay_out(folder, shape, dtype)
        _write_config(folder, shape, dtype)
    _fill_all(Maker(targets, shape, dtype, delta_rms), threads or os.cpu_count() or 1)
    stamp.write_text(json.dumps(facts))
    return folders


def _fill_all(maker: Maker, threads: int) -> None:
    from rich.progress import Progress

    jobs = list(maker.jobs())
    with Progress(transient=True) as progress, ThreadPoolExecutor(threads) as pool:
        bar = progress.add_task("making models", total=len(jobs))
        for _ in pool.map(maker.fill, jobs):
            progress.advance(bar)
    maker.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="1.24b", help=f"one of {', '.join([*SIZES, *ALIASES])}")
    parser.add_argument("--dtype", default="bfloat16", choices=sorted(HEADER_DTYPE))
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    for model, folder in ensure(size_named(args.size), args.dtype, threads=args.threads).items():
        print(f"{model:5} {folder}")


if __name__ == "__main__":
    main()
