"""Pass 1 and pass 2 over every tensor, on a pool of threads, straight into the shards of the output."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from smelt.checkpoint import PIECE, CheckpointWriter, TensorDigest
from smelt.core.errors import SmeltError
from smelt.core.types import FLOATS, ITEMSIZE
from smelt.engine.crew import Crew
from smelt.engine.express import BATCH, COPIED, Express
from smelt.engine.feeds import Feed, FileFeed, Scratch
from smelt.engine.jobs import Job, Part
from smelt.engine.measure import measure_all
from smelt.engine.members import FilePart
from smelt.engine.run import NestedFeed, TensorRun, add_context
from smelt.methods import REGISTRY
from smelt.numerics.blocks import GRAIN, Backend
from smelt.numerics.reference import NumpyBackend
from smelt.numerics.rounding import accumulation
from smelt.numerics.stats import TensorInfo

if TYPE_CHECKING:
    from smelt.checkpoint.swift import Port

#: a merge of fewer elements is not worth loading the compiler for
SMALL_MERGE = 1 << 21
#: tensors of this many elements and more are shared by all threads
SHARED = 1 << 25

Sink = Callable[[str, int, Any], None]
Progress = Callable[[int, int], None]  # bytes, tensors done since the last call


def choose_backend(jobs: Mapping[str, Job], device: str) -> Backend:
    """The compiled loops; plain numpy for a merge so small that loading them would take longer."""
    if device != "cpu":
        from smelt.numerics.torch_backend import TorchBackend

        return TorchBackend(device)
    work = sum(job.spec.numel * len(job.inputs) for job in jobs.values() if job.kind == "merge")
    if work < SMALL_MERGE:
        return NumpyBackend()
    from smelt.numerics.compiled import CompiledBackend

    return CompiledBackend()


def is_compiled(backend: Backend) -> bool:
    """Whether compiled code is at hand for reading and writing too."""
    return backend.name == "numba"


class Executor:
    """Carries jobs out. ``sink(name, first byte, data)`` receives the result in blocks, from any thread; what
    ``direct`` takes goes there without passing through Python."""

    def __init__(
        self, jobs: Mapping[str, Job], sink: Sink, *, threads: int, block: int, backend: Backend,
        allow_nonfinite: bool = False, progress: Progress | None = None, direct: CheckpointWriter | None = None,
    ) -> None:  # fmt: skip
        self.direct = direct
        self.jobs, self.sink, self.backend, self.block = jobs, sink, backend, max(block // GRAIN, 1) * GRAIN
        self.threads, self.allow_nonfinite = max(threads, 1), allow_nonfinite
        self.progress = progress or (lambda size, tensors: None)
        self.digests: dict[tuple[str, str], TensorDigest] = {}
        self._claims: dict[int, TensorDigest] = {}
        self._lock = threading.Lock()

    def run(self) -> None:
        """Every job; large tensors by all threads together, the rest each by one."""
        groups = self._groups()
        with ThreadPoolExecutor(self.threads, thread_name_prefix="smelt") as pool:
            team = Crew(self.block, pool, self.threads)
            shared = [group for group in groups if self._is_shared(group)]
            for group in shared:
                self._run_group(group, team)
            alone = [group for group in groups if not self._is_shared(group)]
            self._run_alone(alone, pool)

    def _groups(self) -> list[list[Job]]:
        """Jobs that must be measured together: one each, unless an order statistic spans a layer or the model."""
        groups: dict[Any, list[Job]] = {}
        for name, job in self.jobs.items():
            scope = widest_scope(job)
            key = {"tensor": ("tensor", name), "layer": ("layer", job.layer), "model": ("model",)}[scope]
            groups.setdefault(key, []).append(job)
        return sorted(groups.values(), key=lambda group: -sum(job.spec.numel for job in group))

    def _is_shared(self, group: Sequence[Job]) -> bool:
        return self.threads > 1 and (len(group) > 1 or group[0].spec.numel >= SHARED)

    def _run_alone(self, groups: Sequence[Sequence[Job]], pool: ThreadPoolExecutor) -> None:
        stop = threading.Event()
        turn = iter(groups)

        def take() -> None:
            solo = Crew(self.block)
            while not stop.is_set():
                with self._lock:
                    group = next(turn, None)
                if group is None:
                    return
                try:
                    self._run_group(group, solo)
                except BaseException:
                    stop.set()
                    raise

        futures = [pool.submit(take) for _ in range(min(self.threads, len(groups)))]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            stop.set()

    def _run_group(self, group: Sequence[Job], crew: Crew) -> None:
        merges = [job for job in group if job.kind == "merge"]
        runs = {job.spec.name: self.build(job) for job in merges}
        for level in _levels(list(runs.values())):
            if len(group) > 1:
                _agree_on_patterns(level)
            measure_all(level, crew)
        for job in group:
            try:
                if job.kind == "copy":
                    self._copy(job, crew)
                else:
                    self._combine(job, runs[job.spec.name], crew)
            except SmeltError as error:
                raise add_context(error, f"output tensor {job.spec.name!r}") from None
            self.progress(0, 1)
        for run in runs.values():
            for feed in _file_feeds(run):
                feed.let_go()

    def build(self, job: Job, acc: np.dtype | None = None) -> TensorRun:
        """The run of a job, with the runs nested in it. A nested merge with a dtype of its own is made as it would
        be alone and then rounded; one without hands its float64 numbers on."""
        dtype = job.spec.dtype
        if acc is None or job.fixed_dtype:
            acc = accumulation(_read_dtypes(job) | {dtype})
        else:
            dtype = "F64"
        base = self._feed(job.base, acc) if job.base is not None else None
        models = [self._feed(part, acc) for part in job.models]
        info = TensorInfo(job.stream or job.spec.name, job.spec.shape, job.seed)
        return TensorRun(
            REGISTRY[job.method], info, base, models, dict(job.params), dtype=dtype, acc=acc,
            backend=self.backend, layer=job.layer,
        )  # fmt: skip

    def _feed(self, part: Part, acc: np.dtype) -> Feed:
        if isinstance(part, FilePart):
            return FileFeed(part.checkpoint, part.meta, in_place=is_compiled(self.backend))
        return NestedFeed(self.build(part, acc)) if part.kind == "merge" else self._feed(part.models[0], acc)

    def _combine(self, job: Job, run: TensorRun, crew: Crew) -> None:
        item = ITEMSIZE[job.spec.dtype]
        for feed in _file_feeds(run):
            is_broken = None if self.allow_nonfinite else self.backend.nonfinite
            feed.last_pass(self._claim(feed), is_broken, swift=is_compiled(self.backend))

        def work(start: int, size: int, scratch: Scratch) -> None:
            self.sink(job.spec.name, start * item, run.combine(start, size, scratch, "out"))
            self.progress(size * item, 0)

        if not job.spec.numel:
            return
        out = self._port(job.spec.name)
        express = None
        if out is not None:  # the program is traced here, before threads share it
            express = Express.of(run.feeds, run.program.inputs, out, job.spec.numel, run)
        if express is None:
            crew.each_block(job.spec.numel, work)
            return

        def quick(start: int, stop: int, scratch: Scratch) -> tuple[int, Any]:
            reached = express.combine(start, stop, scratch)
            self._wrote(job.spec.name, start * item, (reached - start) * item)
            return reached, None

        crew.each_batch(job.spec.numel, quick, work, BATCH)

    def _port(self, name: str) -> Port | None:
        """Where compiled code may write a tensor, if the output offers that."""
        return self.direct.port(name) if self.direct is not None and is_compiled(self.backend) else None

    def _wrote(self, name: str, start: int, length: int) -> None:
        if length:
            assert self.direct is not None
            self.direct.wrote(name, start, length)
            self.progress(length, 0)

    def _copy(self, job: Job, crew: Crew) -> None:
        part = job.models[0]
        while isinstance(part, Job):
            part = part.models[0]
        feed = FileFeed(part.checkpoint, part.meta, in_place=is_compiled(self.backend))
        check = not self.allow_nonfinite and part.meta.dtype in FLOATS
        feed.last_pass(
            self._claim(feed), self.backend.nonfinite if check else None, swift=is_compiled(self.backend)
        )

        def work(start: int, length: int, scratch: Scratch) -> None:
            buffer = scratch.bytes("copy", length)
            feed.read(start, buffer)
            self.sink(job.spec.name, start, buffer)
            self.progress(length, 0)

        if not part.meta.nbytes:
            return
        crew, out = crew.of_bytes(), self._port(job.spec.name)
        source = feed.port(1)
        if out is None or source is None or not source.fits(PIECE):
            crew.each_block(part.meta.nbytes, work)
            return
        limit = source.limit(part.meta.nbytes, PIECE)
        express = Express([source], (0,), replace(out, item=1), PIECE, limit)

        def quick(start: int, stop: int, scratch: Scratch) -> tuple[int, Any]:
            reached = express.copy(start, stop, scratch)
            self._wrote(job.spec.name, start, reached - start)
            return reached, None

        crew.each_batch(part.meta.nbytes, quick, work, COPIED)
        feed.let_go()

    def _claim(self, feed: FileFeed) -> TensorDigest | None:
        """The digest to be filled from this feed; each input tensor is fingerprinted once."""
        key = (str(feed.meta.file), feed.meta.name)
        with self._lock:
            if key in self.digests:
                return None
            self.digests[key] = TensorDigest(feed.meta.nbytes)
            return self.digests[key]


def _read_dtypes(job: Job) -> set[str]:
    """Dtypes of what a job reads: files, and nested merges that were given one."""
    found: set[str] = set()
    for part in job.inputs:
        if isinstance(part, Job) and part.kind == "merge" and not part.fixed_dtype:
            found |= _read_dtypes(part)
        else:
            found.add(part.spec.dtype)
    return found


def widest_scope(job: Job) -> str:
    """The widest scope an order statistic of this job (or of one nested in it) asks for."""
    scopes = [
        str(job.params.get("scope", "tensor")),
        *(widest_scope(part) for part in job.inputs if isinstance(part, Job)),
    ]
    return max(scopes, key=["tensor", "layer", "model"].index)


def _agree_on_patterns(runs: Sequence[TensorRun]) -> None:
    """Order statistics across tensors compare bit patterns, so all must be of one width."""
    if len({run.acc for run in runs}) > 1:
        for run in runs:
            run.acc = np.dtype(np.float64)


def _levels(runs: Sequence[TensorRun]) -> list[list[TensorRun]]:
    """Runs by nesting, innermost first: a merge is measured after what it reads."""
    levels: list[list[TensorRun]] = [list(runs)]
    while inner := [feed.run for run in levels[-1] for feed in run.feeds if isinstance(feed, NestedFeed)]:
        levels.append(inner)
    return levels[::-1]


def _file_feeds(run: TensorRun) -> list[FileFeed]:
    found: list[FileFeed] = []
    for feed in run.feeds:
        found += [feed] if isinstance(feed, FileFeed) else _file_feeds(feed.run)  # type: ignore[attr-defined]
    return found
