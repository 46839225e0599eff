"""Read a checkpoint back, every byte once, and say whether it is what it should be."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from smelt.checkpoint.digest import PIECE, TensorDigest, WriteLog
from smelt.checkpoint.files import read_json
from smelt.checkpoint.layout import ShardLayout
from smelt.checkpoint.problems import Problems
from smelt.checkpoint.reader import Checkpoint, open_checkpoint
from smelt.core.errors import CheckpointError, Problem, VerificationError
from smelt.core.types import TensorMeta, TensorSpec

#: bytes read at a time by one thread
CHUNK = 8 * PIECE
PROVENANCE = "smelt.json"
_OVERFLOW = {
    "F16": "float16 ends at 65504, and larger results become Inf: merge with dtype: bfloat16 or float32"
}

#: tensors and config in, errors and warnings out
Agreement = Callable[
    [Mapping[str, TensorMeta], Mapping[str, Any]], tuple[Sequence[Problem], Sequence[Problem]]
]


@dataclass(frozen=True)
class VerifyReport:
    """What was read and what is wrong with it."""

    path: Path
    tensors: int = 0
    parameters: int = 0
    bytes: int = 0
    files: int = 0
    seconds: float = 0.0
    dtypes: Mapping[str, int] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    compared: int = 0
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing disagrees."""
        return not self.problems

    def raise_for_problems(self) -> None:
        """Raise a VerificationError with every problem, if there is one."""
        if self.problems:
            raise VerificationError(self.problems)


def verify_directory(
    path: str | Path,
    *,
    threads: int = 2,
    expected: ShardLayout | Sequence[TensorSpec] | None = None,
    digests: Mapping[str, str] | None = None,
    written: Mapping[str, WriteLog] | None = None,
    allow_nonfinite: bool = False,
    agreement: Agreement | None = None,
    scanned: Scan | None = None,
    cold: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> VerifyReport:
    """Check a model directory (or one file) against what it should hold.

    ``expected`` fixes names, dtypes and shapes; ``digests`` (else the provenance file beside the weights)
    fixes contents; ``written`` are a writer's records; ``agreement`` compares tensors with config.json;
    ``cold`` has the bytes come from the disk itself and not from what the kernel remembers of it.
    ``scanned`` is what was read back already and is not read again.
    ``on_progress`` is told of the bytes read, from any thread. A path that does not exist raises; all else
    that is wrong is in the report.
    """
    path = Path(path)
    began = time.perf_counter()
    if not path.exists():
        open_checkpoint(path)
    try:
        checkpoint = open_checkpoint(path)
    except CheckpointError as error:
        return VerifyReport(path, problems=error.problems, seconds=time.perf_counter() - began)
    with checkpoint:
        if cold:
            forget(checkpoint.files)
        problems = [] if expected is None else compare_specs(checkpoint.tensors, _specs(expected))
        scan = Scan(checkpoint, on_progress)
        if scanned is not None:
            scan.take_over(scanned)
        problems += scan.run(max(1, threads), allow_nonfinite)
        found = {name: digest.hexdigest() for name, digest in scan.digests.items() if digest.complete}
        problems += _check_written(checkpoint, scan.digests, written or {})
        known = digests if digests is not None else _provenance(path, problems)
        problems += _check_digests(found, known, path)
        wrong, odd = agreement(checkpoint.tensors, checkpoint.config) if agreement else ((), ())
        problems += wrong
    report = _summarise(checkpoint, time.perf_counter() - began)
    return replace(report, digests=found, compared=len(known), problems=tuple(problems), warnings=tuple(odd))


def forget(files: Iterable[Path]) -> None:
    """Have the kernel drop what it caches of files; what is not yet on disk it writes first."""
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def _specs(expected: ShardLayout | Sequence[TensorSpec]) -> Iterable[TensorSpec]:
    return expected.specs.values() if isinstance(expected, ShardLayout) else expected


def compare_specs(tensors: Mapping[str, TensorMeta], expected: Iterable[TensorSpec]) -> list[Problem]:
    """Names, dtypes and shapes that are not as expected."""
    problems = []
    names = set()
    for spec in expected:
        names.add(spec.name)
        meta = tensors.get(spec.name)
        if meta is None:
            problems.append(
                Problem("is missing", f"tensor {spec.name!r}", f"{spec.dtype} {list(spec.shape)}")
            )
        elif (meta.dtype, meta.shape) != (spec.dtype, spec.shape):
            found = f"is {meta.dtype} {list(meta.shape)}"
            problems.append(Problem(found, f"tensor {spec.name!r}", f"{spec.dtype} {list(spec.shape)}"))
    surplus = [name for name in tensors if name not in names]
    return problems + [
        Problem("is not in the plan", f"tensor {name!r}", "no such tensor") for name in surplus
    ]


class Scan:
    """One look at all bytes: digests of every tensor, and positions of NaN and Inf."""

    def __init__(
        self, checkpoint: Checkpoint, on_progress: Callable[[int], None] | None = None, *, swift: bool = False
    ) -> None:
        self._swift = swift
        self.checkpoint = checkpoint
        self.on_progress = on_progress
        self.digests = {name: TensorDigest(meta.nbytes) for name, meta in checkpoint.tensors.items()}
        self.bad: dict[str, list[tuple[int, int]]] = {}
        self.errors: list[Problem] = []
        self._seen = 0
        self._buffer = memoryview(bytearray(CHUNK))
        self._chunks: list[tuple[TensorMeta, int, int]] = []
        self._next = itertools.count()
        self._lock = threading.Lock()
        self._stopped = False

    def take_over(self, other: Scan) -> None:
        """Use what another scan has seen of the same files, where the headers still say what they said then."""
        for name, meta in self.checkpoint.tensors.items():
            if other.checkpoint.tensors.get(name) == meta:
                self.digests[name] = other.digests[name]
                if name in other.bad:
                    self.bad[name] = other.bad[name]
        self._seen = sum(digest.seen_bytes for digest in self.digests.values())

    def check(self, name: str, start: int, length: int) -> None:
        """Look at the whole pieces of bytes [start, start + length) of a tensor; the rest is left for ``run``.
        For one thread at a time."""
        meta = self.checkpoint.tensors[name]
        first, end = -(-start // PIECE) * PIECE, start + length
        last = end if end == meta.nbytes else end // PIECE * PIECE
        if first < last and not self._scan_swiftly(meta, first, last - first):
            for at in range(first, last, CHUNK):
                self._look(meta, at, self._buffer[: min(CHUNK, last - at)])

    def run(self, threads: int, allow_nonfinite: bool) -> list[Problem]:
        """Look at all that has not been seen, with so many threads; what was found in all."""
        self._chunks = [
            (meta, start, min(CHUNK, end - start))
            for name, meta in self.checkpoint.tensors.items()
            for first, end in self.digests[name].unseen()
            for start in range(first, end, CHUNK)
        ]
        if self.on_progress is not None and self._seen:
            self.on_progress(self._seen)
        with ThreadPoolExecutor(threads) as pool:
            try:
                for future in [pool.submit(self._work) for _ in range(threads)]:
                    future.result()
            finally:
                self._stopped = True  # an interrupt must not wait for the rest of the file
        bad = (
            []
            if allow_nonfinite
            else [self._describe(name) for name in self.checkpoint.tensors if name in self.bad]
        )
        return self.errors + bad

    def _work(self) -> None:
        buffer = memoryview(bytearray(CHUNK))
        try:
            while not self._stopped and (number := next(self._next)) < len(self._chunks):
                meta, start, length = self._chunks[number]
                self._look(meta, start, buffer[:length])
        except BaseException:
            self._stopped = True
            raise

    def _look(self, meta: TensorMeta, start: int, view: memoryview) -> None:
        from smelt.checkpoint.finite import has_nonfinite

        try:
            self.checkpoint.read_into(meta, start, view)
        except (CheckpointError, OSError) as error:
            self._note_error(meta, error)
            return
        self.digests[meta.name].add(start, view)
        if has_nonfinite(view, meta.dtype):
            self._note_nonfinite(meta, start, view)
        if self.on_progress is not None:
            self.on_progress(len(view))

    def _scan_swiftly(self, meta: TensorMeta, start: int, length: int) -> bool:
        """One compiled call for a span; False where it must be looked at closely."""
        if not self._swift:
            return False
        from smelt.checkpoint.finite import EXPONENTS, may_be_nonfinite
        from smelt.checkpoint.swift import SwiftReader

        place = self.checkpoint.place(meta)
        finite = EXPONENTS.get(meta.dtype)
        if place is None or (finite is None and may_be_nonfinite(meta.dtype)):
            return False
        if SwiftReader(*place, self.digests[meta.name], finite).scan(start, length, self._buffer) != 0:
            return False
        if self.on_progress is not None:
            self.on_progress(length)
        return True

    def _note_error(self, meta: TensorMeta, error: Exception) -> None:
        with self._lock:
            where = f"{meta.file}, tensor {meta.name!r}"
            self.errors += getattr(error, "problems", (Problem(f"cannot be read ({error})", where),))

    def _note_nonfinite(self, meta: TensorMeta, start: int, view: memoryview) -> None:
        from smelt.checkpoint.finite import nonfinite_positions

        positions = nonfinite_positions(view, meta.dtype)
        with self._lock:
            first = start * meta.numel // meta.nbytes + int(positions[0])
            self.bad.setdefault(meta.name, []).append((first, len(positions)))

    def _describe(self, name: str) -> Problem:
        found = self.bad[name]
        first, count = min(found)[0], sum(count for _, count in found)
        meta = self.checkpoint.tensors[name]
        what = f"{count} of {meta.numel} values are NaN or Inf, the first at element {first}"
        return Problem(
            what, f"{meta.file.name}, tensor {name!r}", "finite values", _OVERFLOW.get(meta.dtype, "")
        )


def _check_written(
    checkpoint: Checkpoint, digests: Mapping[str, TensorDigest], written: Mapping[str, WriteLog]
) -> list[Problem]:
    """Bytes on disk that are not the bytes a writer was given."""
    problems = []
    for name, log in written.items():
        meta = checkpoint.tensors.get(name)
        if meta is not None and meta.nbytes == log.digest.nbytes:
            for span in log.disagreements(digests[name], partial(_read, checkpoint, meta)):
                what = f"bytes {span} on disk are not those that were written"
                problems.append(Problem(what, f"tensor {name!r}"))
    return problems


def _read(checkpoint: Checkpoint, meta: TensorMeta, start: int, length: int) -> memoryview:
    view = memoryview(bytearray(length))
    checkpoint.read_into(meta, start, view)
    return view


def _provenance(path: Path, problems: list[Problem]) -> Mapping[str, str]:
    """Digests of the provenance file beside the weights, if there is one."""
    file = path / PROVENANCE if path.is_dir() else path.parent / PROVENANCE
    if not path.is_dir() or not file.is_file():
        return {}
    notes = Problems()
    content = read_json(file, notes) or {}
    outputs = content.get("outputs", {})
    if not isinstance(outputs, dict):
        notes.add("outputs is not a map of tensors to digests", file)
        outputs = {}
    problems += notes.found
    return outputs


def _check_digests(found: Mapping[str, str], known: Mapping[str, str], path: Path) -> list[Problem]:
    """Tensors whose content is not the recorded one, and recorded ones that are not there."""
    problems = []
    for name, digest in known.items():
        if name not in found:
            problems.append(Problem("is recorded but cannot be found or read", f"tensor {name!r}"))
        elif found[name] != digest:
            what = f"content has digest {found[name]}"
            problems.append(
                Problem(what, f"tensor {name!r}", str(digest), "the weights were changed or damaged")
            )
    unknown = [name for name in found if known and name not in known]
    return problems + [Problem("is not among the recorded outputs", f"tensor {name!r}") for name in unknown]


def _summarise(checkpoint: Checkpoint, seconds: float) -> VerifyReport:
    metas = checkpoint.tensors.values()
    dtypes: dict[str, int] = {}
    for meta in metas:
        dtypes[meta.dtype] = dtypes.get(meta.dtype, 0) + meta.nbytes
    return VerifyReport(
        checkpoint.path,
        tensors=len(checkpoint.tensors),
        parameters=sum(meta.numel for meta in metas),
        bytes=sum(dtypes.values()),
        files=len(checkpoint.files),
        seconds=seconds,
        dtypes=dtypes,
        notes=tuple(checkpoint.notes),
    )
