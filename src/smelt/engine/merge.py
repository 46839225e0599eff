"""From a plan to a verified directory: write beside the target, prove every byte, record how it was made, rename."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smelt.arch import check_agreement
from smelt.checkpoint import CheckpointWriter, TensorDigest
from smelt.core.errors import OutputError
from smelt.engine.execute import Executor, choose_backend, is_compiled
from smelt.engine.plan import Plan, Settings, plan_merge
from smelt.engine.provenance import PROVENANCE, RerunReport, compare_records, read_record, record
from smelt.methods import REGISTRY
from smelt.recipe import load_recipe

Progress = Callable[[str, int, int, int], None]  # stage, bytes done, bytes in all, tensors done


@dataclass(frozen=True)
class MergeReport:
    """What a finished merge did and where it stands."""

    path: Path
    tensors: int
    parameters: int
    bytes_in: int
    bytes_out: int
    files: int
    seconds: float
    merge_seconds: float
    verify_seconds: float
    outputs: Mapping[str, str]
    notes: tuple[str, ...]


def run_merge(
    plan: Plan, target: str | Path, *, overwrite: bool = False, progress: Progress | None = None
) -> MergeReport:
    """Carry a plan out. The target appears complete and verified, or not at all."""
    began = time.perf_counter()
    _refuse_own_input(plan, Path(target))
    settings, tell = plan.settings, progress or (lambda stage, done, total, tensors: None)
    backend = choose_backend(plan.jobs, settings.device)
    with CheckpointWriter(target, plan.layout, overwrite=overwrite, swift=is_compiled(backend)) as writer:
        _side_files(plan, writer)
        executor = Executor(
            plan.jobs, writer.write, threads=settings.threads, block=settings.block,
            backend=backend, allow_nonfinite=settings.allow_nonfinite, direct=writer,
            progress=_counter("merge", plan.layout.data_bytes, tell),
        )  # fmt: skip
        executor.run()
        merged = time.perf_counter()
        report = writer.verify(
            threads=settings.threads, allow_nonfinite=settings.allow_nonfinite, agreement=check_agreement,
            on_progress=_counter("verify", plan.layout.data_bytes, tell),
        )  # fmt: skip
        verified = time.perf_counter()
        writer.add_json(PROVENANCE, record(plan, executor.digests, report.digests))
        tell("sync", 0, 1, 0)
        writer.commit()
    return MergeReport(
        Path(target), len(plan.jobs), sum(job.spec.numel for job in plan.jobs.values()), plan.bytes_in,
        plan.bytes_out, len(plan.layout.shards), time.perf_counter() - began, merged - began, verified - merged,
        report.digests, tuple(plan.notes),
    )  # fmt: skip


def merge(
    recipe: Any, target: str | Path, settings: Settings | None = None, *, overwrite: bool = False,
    progress: Progress | None = None,
) -> MergeReport:  # fmt: skip
    """Plan a recipe (path, text, mapping or Recipe) and carry it out."""
    plan = plan_merge(recipe, settings)
    try:
        return run_merge(plan, target, overwrite=overwrite, progress=progress)
    finally:
        plan.close()


def _refuse_own_input(plan: Plan, target: Path) -> None:
    """An output that replaces one of its inputs could never be made again."""
    place = target.resolve()
    for member in plan.members.by_ref.values():
        if member is not None and member.checkpoint is not None:
            source = member.checkpoint.path.resolve()
            if source == place or place in source.parents:
                raise OutputError(
                    f"is or holds the input {member.label}", where=str(target), fix="choose another directory"
                )


def _side_files(plan: Plan, writer: CheckpointWriter) -> None:
    if plan.config:
        writer.add_json("config.json", plan.config)
    for name, source in plan.side_files.items():
        writer.add_file(source, name)


def _counter(stage: str, total: int, tell: Progress) -> Callable[..., None]:
    """Adds up bytes and tensors from any thread."""
    from threading import Lock

    lock, done, finished = Lock(), 0, 0

    def add(size: int, tensors: int = 0) -> None:
        nonlocal done, finished
        with lock:
            done += size
            finished += tensors
            tell(stage, done, total, finished)

    return add


def rerun(
    directory: str | Path, settings: Settings | None = None, progress: Progress | None = None
) -> RerunReport:
    """Make a finished merge again from its provenance, in memory, and compare every fingerprint."""
    past = read_record(Path(directory))
    chosen = replace(
        settings or Settings(), seed=past["settings"]["seed"], missing=past["settings"]["missing"],
        allow_nonfinite=past["settings"]["allow_nonfinite"],
        by_position=past["settings"].get("by_position", False), shard_size=past["settings"]["shard_size"],
    )  # fmt: skip
    beside = (
        Path(directory).resolve().parent
    )  # where relative models are looked for besides the working directory
    plan = plan_merge(load_recipe(past["recipe"], methods=REGISTRY, base_dir=beside), chosen)
    try:
        found = {name: TensorDigest(job.spec.nbytes) for name, job in plan.jobs.items()}
        executor = Executor(
            plan.jobs, lambda name, start, data: found[name].add(start, data), threads=chosen.threads,
            block=chosen.block, backend=choose_backend(plan.jobs, chosen.device),
            allow_nonfinite=chosen.allow_nonfinite,
            progress=_counter("merge", plan.layout.data_bytes, progress or (lambda *_: None)),
        )  # fmt: skip
        executor.run()
        fresh = record(plan, executor.digests, {name: digest.hexdigest() for name, digest in found.items()})
    finally:
        plan.close()
    return compare_records(Path(directory), past, fresh)


def with_settings(settings: Settings, **changes: Any) -> Settings:
    """The settings with every change that is not None."""
    return replace(settings, **{name: value for name, value in changes.items() if value is not None})
