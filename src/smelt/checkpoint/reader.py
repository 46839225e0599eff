"""Open a checkpoint by its headers alone, then read any bytes of any tensor from any thread."""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from smelt.checkpoint.files import as_bytes, fill, open_read, read_json, read_some
from smelt.checkpoint.header import read_header
from smelt.checkpoint.locate import Located, locate
from smelt.checkpoint.problems import Problems, listing, shorten
from smelt.core.errors import CheckpointError
from smelt.core.types import TensorMeta


class Checkpoint:
    """Named tensors in files. Nothing but headers is held; ``read_into`` may be called from many threads."""

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        tensors: dict[str, TensorMeta],
        files: tuple[Path, ...],
        metadata: dict[str, str],
        notes: list[str],
    ) -> None:
        self.path = path
        self.config = config
        self.tensors = tensors
        self.files = files
        self.metadata = metadata
        self.notes = notes
        self._fds: dict[Path, int] = {}
        self._maps: dict[Path, mmap.mmap] = {}
        self._lock = threading.Lock()

    def read_into(self, meta: TensorMeta, start: int, out: Any) -> None:
        """Fill ``out`` with bytes [start, start + len(out)) of the dense row-major tensor."""
        view = as_bytes(out)
        if start < 0 or start + len(view) > meta.nbytes:
            what = f"a read leaves the tensor: bytes {start} to {start + len(view)} of {meta.nbytes}"
            raise CheckpointError(what, where=_where(meta))
        if meta.strides is not None:
            self._read_strided(meta, start, view)
            return
        fd = self._descriptor(meta)
        try:
            got = fill(fd, view, meta.offset + start)
        except OSError as error:
            what = f"cannot be read ({error.strerror})"
            raise CheckpointError(what, where=_where(meta), fix="check the disk") from error
        if got != len(view):
            what = f"the file ends {len(view) - got} bytes early"
            raise CheckpointError(what, where=_where(meta), fix="fetch it again")

    def _descriptor(self, meta: TensorMeta) -> int:
        fd = self._fds.get(meta.file)
        return self._open(meta.file) if fd is None else fd

    def place(self, meta: TensorMeta) -> tuple[int, int] | None:
        """An open file and the offset where a tensor begins; None when it does not lie there densely."""
        return None if meta.strides is not None else (self._descriptor(meta), meta.offset)

    def _open(self, file: Path) -> int:
        with self._lock:
            if file not in self._fds:
                self._fds[file] = open_read(file)
            return self._fds[file]

    def _read_strided(self, meta: TensorMeta, start: int, out: memoryview) -> None:
        """Tensors of torch files that were saved as views of a larger or transposed storage."""
        from smelt.checkpoint.strided import read_strided

        fd = self._open(meta.file)
        with self._lock:
            if meta.file not in self._maps:
                self._maps[meta.file] = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
            mapped = self._maps[meta.file]
        read_strided(mapped, meta, start, out)

    def close(self) -> None:
        """Close every file; the checkpoint may be read again afterwards, which reopens them."""
        with self._lock:
            fds, self._fds = list(self._fds.values()), {}
            maps, self._maps = list(self._maps.values()), {}
        for mapped in maps:
            mapped.close()
        for fd in fds:
            os.close(fd)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, {len(self.tensors)} tensors in {len(self.files)} files)"


def _where(meta: TensorMeta) -> str:
    return f"{meta.file}, tensor {shorten(meta.name)}"


def open_checkpoint(path: str | Path, *, allow_single_file: bool = True) -> Checkpoint:
    """Open a model directory, or one file of weights; every problem found is in one CheckpointError."""
    path = Path(path)
    problems = Problems()
    config: dict[str, Any] = {}
    if path.is_dir():
        located = locate(path, problems)
        if (path / "config.json").is_file():
            config = read_json(path / "config.json", problems, strict_keys=False) or {}
    else:
        located = _single_file(path, allow_single_file, problems)
    problems.raise_any()
    assert located is not None
    tensors, metadata = _read_headers(located, problems)
    problems.raise_any()
    return Checkpoint(path, config, tensors, tuple(located.files), metadata, located.notes)


def _single_file(path: Path, allowed: bool, problems: Problems) -> Located | None:
    if not path.exists():
        problems.add("there is no such file or directory", path, fix=nearest_sibling(path))
    elif not path.is_file():
        problems.add("is neither a file nor a directory", path)
    elif not allowed:
        problems.add("is a file", path, expected="a model directory")
    else:
        return Located([path])
    return None


def nearest_sibling(path: Path) -> str:
    """Advice naming the existing entry beside a missing path that is spelt most like it."""
    from difflib import get_close_matches

    try:
        names = sorted(entry.name for entry in os.scandir(path.parent))
    except OSError:
        return f"{path.parent} does not exist either"
    near = get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f"did you mean {str(path.parent / near[0])!r}?" if near else ""


def _read_headers(located: Located, problems: Problems) -> tuple[dict[str, TensorMeta], dict[str, str]]:
    """Tensors and metadata of all files; names must agree with the index and stand once."""
    tensors: dict[str, TensorMeta] = {}
    metadata: dict[str, str] = {}
    for file in located.files:
        found, metas = _read_file(file, located.notes, problems)
        metadata.update(found)
        for meta in metas:
            if meta.name in tensors:
                problems.add(
                    f"also stands in {tensors[meta.name].file.name}", file, meta.name, expected="one place"
                )
            tensors.setdefault(meta.name, meta)
    if located.weight_map is not None and not problems:
        _check_index(located, tensors, problems)
    return tensors, metadata


def _read_file(file: Path, notes: list[str], problems: Problems) -> tuple[dict[str, str], list[TensorMeta]]:
    try:
        fd = open_read(file)
    except CheckpointError as error:
        problems.found.extend(error.problems)
        return {}, []
    try:
        if file.suffix != ".safetensors" and not _is_safetensors(fd):
            from smelt.checkpoint.torchfile import read_torch

            return {}, read_torch(file, fd, notes, problems)
        if file.suffix != ".safetensors":
            notes.append(f"{file.name} is a safetensors file in spite of its name")
        return read_header(file, fd, problems)
    except OSError as error:
        problems.add(f"cannot be read ({error.strerror})", file, fix="check the disk")
        return {}, []
    finally:
        os.close(fd)


def _is_safetensors(fd: int) -> bool:
    """Whether a file begins with a plausible header length and a JSON object."""
    first = read_some(fd, 0, 9)
    return (
        len(first) == 9 and first[8:] == b"{" and int.from_bytes(first[:8], "little") < os.fstat(fd).st_size
    )


def _check_index(located: Located, tensors: dict[str, TensorMeta], problems: Problems) -> None:
    """The index and the shards must name the same tensors in the same files."""
    assert located.weight_map is not None and located.index is not None
    directory = located.index.parent
    for name, file in located.weight_map.items():
        meta = tensors.get(name)
        if meta is None:
            problems.add(f"{shorten(file)} does not hold it, though the index says so", located.index, name)
        elif meta.file != directory / file:
            problems.add(f"stands in {meta.file.name}, the index says {shorten(file)}", located.index, name)
    unlisted = [name for name in tensors if name not in located.weight_map]
    if unlisted:
        what = f"{len(unlisted)} tensors of its shards are not in the weight_map: {listing(unlisted)}"
        problems.add(
            what, located.index, fix="the index is stale; rebuild it, or remove shards that are left over"
        )
