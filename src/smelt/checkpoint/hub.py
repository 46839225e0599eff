"""A model by name: a local path, the Hugging Face cache, or a download of just the files that are needed."""

from __future__ import annotations

import os
import re
from pathlib import Path

from smelt.checkpoint.locate import choose_weights, is_complete
from smelt.checkpoint.reader import nearest_sibling
from smelt.core.errors import CheckpointError

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SIDE_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken"]
_TIMEOUT = 10.0


def find_model(ref: str, revision: str | None = None, *, cache_dir: Path | None = None) -> Path:
    """The directory (or file) of a model: ``ref`` is a path, or a repository of the Hub as ``org/name``.

    What the local cache holds completely is used without asking the network. Otherwise the weights
    (safetensors where there are any) and the side files of a model are downloaded, and no code.
    """
    path = Path(ref).expanduser()
    if path.exists():
        return path
    if not _REPOSITORY.fullmatch(ref) or path.suffix in (".safetensors", ".bin", ".pt", ".pth"):
        raise CheckpointError("there is no such file or directory", where=ref, fix=nearest_sibling(path))
    cached = find_cached(ref, revision, cache_dir)
    if cached is not None and is_complete(cached):
        return cached
    return _download(ref, revision, cache_dir)


def find_cached(ref: str, revision: str | None = None, cache_dir: Path | None = None) -> Path | None:
    """The snapshot of a repository in the local cache, whole or not; read without huggingface_hub."""
    folder = (cache_dir or _cache_root()) / f"models--{ref.replace('/', '--')}"
    name = revision or "main"
    if ".." in Path(name).parts:
        return None
    pointer = folder / "refs" / name
    commit = pointer.read_text().strip() if pointer.is_file() else name
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _cache_root() -> Path:
    """Where huggingface_hub keeps its cache, by the same variables."""
    say = os.environ.get
    named = say("HF_HUB_CACHE") or say("HUGGINGFACE_HUB_CACHE")
    home = Path(say("HF_HOME") or Path(say("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return Path(named or home / "hub").expanduser()


def _download(ref: str, revision: str | None, cache_dir: Path | None) -> Path:
    """Fetch the weights a directory of these files would be read from, and the side files."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        info = HfApi().model_info(ref, revision=revision, timeout=_TIMEOUT)
        names = [entry.rfilename for entry in info.siblings or []]
        wanted = [*_SIDE_FILES, *choose_weights(sorted(name for name in names if "/" not in name))]
        return Path(snapshot_download(ref, revision=revision, cache_dir=cache_dir, allow_patterns=wanted))
    except Exception as error:  # the Hub's client and the HTTP library below it have trees of their own
        near = nearest_sibling(Path(ref))
        what = f"is no path, is not complete in the local cache, and cannot be fetched ({_reason(error)})"
        fix = near if near.startswith("did you") else "check the name, the network and your access"
        raise CheckpointError(what, where=ref, fix=fix) from error


def _reason(error: Exception) -> str:
    """What the Hub's client says, in a line."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
