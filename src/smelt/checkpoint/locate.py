"""Which files of a directory are its weights: single files, shards with an index, and what is left over."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from smelt.checkpoint.files import read_json
from smelt.checkpoint.problems import Problems, listing, shorten

_STEMS = (
    ("model", ".safetensors"),
    ("pytorch_model", ".bin"),
    ("diffusion_pytorch_model", ".safetensors"),
    ("diffusion_pytorch_model", ".bin"),
    ("consolidated", ".safetensors"),
    ("adapter_model", ".safetensors"),
    ("adapter_model", ".bin"),
)
_TORCH = {".bin", ".pt", ".pth", ".ckpt"}
WEIGHT_SUFFIXES = {".safetensors", *_TORCH}
_NOT_WEIGHTS = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state.*|random_states.*)\.(bin|pt|pth|ckpt)"
)
_SHARD = re.compile(r"(?P<stem>.+)-(?P<part>\d+)-of-(?P<count>\d+)(?P<suffix>\.[a-z]+)")


@dataclass
class Located:
    """The weight files of a model, what the index says stands where, and remarks for people."""

    files: list[Path]
    weight_map: dict[str, str] | None = None
    index: Path | None = None
    notes: list[str] = field(default_factory=list)


def locate(directory: Path, problems: Problems) -> Located | None:
    """Find the weights as transformers would: safetensors before torch, a single file before an index."""
    names = sorted(entry.name for entry in os.scandir(directory))
    weights = [
        name for name in names if Path(name).suffix in WEIGHT_SUFFIXES and not _NOT_WEIGHTS.fullmatch(name)
    ]
    chosen = _well_known(names) or _only_choice(names, weights)
    if chosen is None:
        _explain(directory, names, weights, problems)
        return None
    located = (
        _open_index(directory / chosen, problems) if chosen.endswith(".json") else _plain(directory, chosen)
    )
    if located is not None:
        _note_unused(located, directory, names, weights)
    return located


def is_complete(directory: Path) -> bool:
    """Whether a directory holds weights and lacks none of them."""
    problems = Problems()
    return locate(directory, problems) is not None and not problems


def choose_weights(names: list[str]) -> list[str]:
    """Of the files of a repository, by name alone, those that ``locate`` would read.

    >>> choose_weights(["consolidated.safetensors", "model-00001-of-00001.safetensors",
    ...                 "model.safetensors.index.json", "pytorch_model.bin"])
    ['model-00001-of-00001.safetensors', 'model.safetensors.index.json']
    """
    weights = [
        name for name in names if Path(name).suffix in WEIGHT_SUFFIXES and not _NOT_WEIGHTS.fullmatch(name)
    ]
    chosen = _well_known(names) or _only_choice(names, weights)
    if chosen is None:
        return weights
    shard = _SHARD.fullmatch(chosen)
    stem = shard["stem"] if shard else chosen.removesuffix(".index.json").rpartition(".")[0]
    shards = [name for name in weights if (match := _SHARD.fullmatch(name)) and match["stem"] == stem]
    return [*shards, chosen] if chosen.endswith(".json") else shards if shard else [chosen]


def _well_known(names: list[str]) -> str | None:
    """The first conventional name that is there."""
    present = set(names)
    for stem, suffix in _STEMS:
        for name in (stem + suffix, f"{stem}{suffix}.index.json"):
            if name in present:
                return name
    return None


def _only_choice(names: list[str], weights: list[str]) -> str | None:
    """An unusual name that is the only one of its kind: an index, a file, or the first of complete shards."""
    indexes = [name for name in names if name.endswith((".safetensors.index.json", ".bin.index.json"))]
    if len(indexes) == 1:
        return indexes[0]
    for group in (
        [name for name in weights if name.endswith(".safetensors")],
        [name for name in weights if not name.endswith(".safetensors")],
    ):
        if len(group) == 1 or (group and _complete_set(group)):
            return group[0]
        if group:
            return None
    return None


def _complete_set(names: list[str]) -> bool:
    """Whether names are exactly STEM-00001-of-0000N to STEM-0000N-of-0000N."""
    matches = [_SHARD.fullmatch(name) for name in names]
    if not all(matches):
        return False
    kinds = {(m["stem"], int(m["count"]), m["suffix"]) for m in matches if m}
    parts = sorted(int(m["part"]) for m in matches if m)
    return len(kinds) == 1 and parts == list(range(1, next(iter(kinds))[1] + 1))


def _plain(directory: Path, name: str) -> Located:
    """A single file, or the complete set of shards that it begins."""
    match = _SHARD.fullmatch(name)
    if match is None or int(match["part"]) != 1 or int(match["count"]) == 1:
        return Located([directory / name])
    alike = re.compile(rf"{re.escape(match['stem'])}-\d+-of-{match['count']}{re.escape(match['suffix'])}")
    shards = sorted(entry.name for entry in os.scandir(directory) if alike.fullmatch(entry.name))
    return Located(
        [directory / shard for shard in shards], notes=[f"{len(shards)} shards without an index file"]
    )


def _explain(directory: Path, names: list[str], weights: list[str], problems: Problems) -> None:
    if weights:
        what = f"several weight files and none with a usual name: {listing(weights)}"
        problems.add(what, directory, fix="name the one to read instead of its directory")
    elif not names:
        problems.add("the directory is empty", directory, expected="config.json and weights")
    else:
        gguf = [name for name in names if name.endswith(".gguf")]
        fix = "GGUF files are not read here" if gguf else "check that the download finished"
        expected = "model.safetensors, model.safetensors.index.json or pytorch_model.bin"
        problems.add("holds no weights", directory, expected=expected, fix=fix)


def _open_index(index: Path, problems: Problems) -> Located | None:
    """Shards named by an index file, each checked to lie in its directory and to be there."""
    content = read_json(index, problems)
    if content is None:
        return None
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        problems.add("has no weight_map", index, expected='{"weight_map": {tensor: file, ...}}')
        return None
    if not all(isinstance(file, str) for file in weight_map.values()):
        wrong = [name for name, file in weight_map.items() if not isinstance(file, str)]
        problems.add(f"weight_map gives no file name for {listing(wrong)}", index)
        return None
    counts = Counter(weight_map.values())
    files = [index.parent / name for name in sorted(counts) if _shard_is_safe(name, counts, index, problems)]
    return Located(files, weight_map, index)


def _shard_is_safe(name: str, counts: Counter[str], index: Path, problems: Problems) -> bool:
    """A shard must be a file inside the directory of its index, or a link into the hub cache's own blobs."""
    directory = index.parent
    if not name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        problems.add(
            f"names {shorten(name)}, outside its directory", index, expected="a file beside the index"
        )
        return False
    path = directory / name
    if not path.is_file():
        what = f"shard {shorten(name)}, which should hold {counts[name]} tensors, is missing"
        problems.add(what, index, fix="fetch it, or check that the download finished")
        return False
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(directory)) and not _in_hub_cache(directory, real):
        problems.add(f"shard {shorten(name)} is a link to {real}, outside its directory", index)
        return False
    return True


def _in_hub_cache(directory: Path, real: Path) -> bool:
    """Whether a link leads from .../snapshots/REVISION/... to .../blobs/HASH of the same repository."""
    for parent in (directory, *directory.parents):
        if parent.parent.name == "snapshots":
            return real.parent == Path(os.path.realpath(parent.parent.parent / "blobs"))
    return False


def _note_unused(located: Located, directory: Path, names: list[str], weights: list[str]) -> None:
    """Say which weight files and indexes beside the chosen ones are not read."""
    used = {os.path.relpath(file, directory) for file in located.files}
    if located.index is not None:
        used.add(located.index.name)
    indexes = [name for name in names if name.endswith((".safetensors.index.json", ".bin.index.json"))]
    unused = [name for name in (*weights, *indexes) if name not in used]
    if unused:
        located.notes.append(f"beside the weights that are read: {listing(unused, 4)}")
