"""The plan of a merge: everything that can be known from recipe, configs and headers, before a weight is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from smelt.checkpoint import ShardLayout, plan_shards
from smelt.core.errors import PlanError, Problem, did_you_mean
from smelt.core.types import ITEMSIZE
from smelt.engine.draft import Drafter
from smelt.engine.express import WRITTEN
from smelt.engine.jobs import Job
from smelt.engine.members import Members
from smelt.engine.sidefiles import side_files
from smelt.engine.vocabulary import check_vocabularies
from smelt.methods import REGISTRY
from smelt.numerics.blocks import GRAIN
from smelt.recipe import Recipe, load_recipe

#: elements of a block unless told otherwise
BLOCK = 4 * GRAIN
#: bytes the interpreter, numpy, Numba and the kernels take before any block is allocated (measured)
RESIDENT = 190 << 20


@dataclass(frozen=True)
class Settings:
    """How a plan is carried out; nothing here changes a byte of the result except ``seed`` and ``dtype`` choices."""

    threads: int = 2
    block: int = BLOCK
    shard_size: int = 5_000_000_000
    device: str = "cpu"
    seed: int = 0
    missing: str = "error"
    allow_nonfinite: bool = False
    by_position: bool = False
    max_ram: int | None = None


@dataclass
class Plan:
    """A merge that can be carried out: one job per output tensor, where every byte goes, and what was noted."""

    recipe: Recipe
    settings: Settings
    jobs: dict[str, Job]
    config: dict[str, Any]
    layout: ShardLayout
    members: Members
    side_files: dict[str, Path]
    notes: list[str] = field(default_factory=list)

    @cached_property
    def inputs(self) -> dict[tuple[Path, str], Any]:
        """Every tensor on disk that is read, once."""
        return {(part.meta.file, part.meta.name): part for job in self.jobs.values() for part in job.files()}

    @property
    def bytes_in(self) -> int:
        """Bytes of all input tensors."""
        return sum(part.meta.nbytes for part in self.inputs.values())

    @property
    def bytes_out(self) -> int:
        """Bytes of all output files."""
        return self.layout.file_bytes

    @property
    def methods(self) -> Counter[str]:
        """How many tensors each method makes."""
        return Counter(job.method for job in self.jobs.values())

    @property
    def passes(self) -> str:
        """How often the inputs are read."""
        measured = any(job.kind == "merge" and REGISTRY[job.method].measure for job in self.jobs.values())
        return "two passes or a little more" if measured else "one pass"

    def unused(self) -> dict[str, list[str]]:
        """Tensors of each opened model that no job reads."""
        found: dict[str, list[str]] = {}
        for member in self.members.by_ref.values():
            if member is not None and member.checkpoint is not None:
                left = [
                    name for name, part in member.parts.items() if (part.meta.file, name) not in self.inputs
                ]
                if left:
                    found[member.label] = left
        return found

    def peak_memory(self) -> int:
        """Predicted peak of anonymous memory in bytes."""
        per_element = max(
            sum(ITEMSIZE[part.meta.dtype] for part in job.files()) + 8 for job in self.jobs.values()
        )
        largest = max(job.spec.numel for job in self.jobs.values())
        block = min(self.settings.block, max(largest, 1))
        gathered = max(ITEMSIZE[job.spec.dtype] for job in self.jobs.values()) * min(WRITTEN * GRAIN, largest)
        return RESIDENT + self.settings.threads * (block * per_element + gathered) + 64 * len(self.jobs)

    def job(self, name: str) -> Job:
        """The job of an output tensor, or an error with the nearest name."""
        if name not in self.jobs:
            raise PlanError(f"no output tensor {name!r}", fix=did_you_mean(name, list(self.jobs)))
        return self.jobs[name]

    def close(self) -> None:
        """Close every input file."""
        self.members.close()


def plan_merge(recipe: Recipe | str | Path | Mapping[str, Any], settings: Settings | None = None) -> Plan:
    """Read headers and configs, and lay the merge out. Raises PlanError with every problem at once."""
    settings = settings or Settings()
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, methods=REGISTRY)
    members = Members()
    drafter = Drafter(members, REGISTRY, settings.missing, settings.seed)
    try:
        draft, outcome = drafter.draft(recipe)
        problems = [*members.problems, *drafter.problems]
        if outcome is not None and not problems:
            problems += check_vocabularies(recipe, members, drafter.notes, settings.by_position)
        if problems or outcome is None:
            raise PlanError(problems or [Problem("nothing to write")])
        return _finish(recipe, settings, draft.jobs, draft.config, members, outcome.folder, drafter.notes)
    except BaseException:
        members.close()
        raise


def _finish(
    recipe: Recipe, settings: Settings, jobs: dict[str, Job], config: dict[str, Any], members: Members,
    folder: Path | None, notes: list[str],
) -> Plan:  # fmt: skip
    layout = plan_shards(
        [job.spec for job in jobs.values()], settings.shard_size, metadata={"made_by": "smelt"}
    )
    files, file_notes = side_files(folder) if folder is not None else ({}, [])
    notes = [*map(str, recipe.warnings), *notes, *file_notes]
    for member in members.by_ref.values():
        if member is not None and member.checkpoint is not None:
            notes += [f"{member.label}: {note}" for note in member.checkpoint.notes]
    plan = Plan(recipe, settings, jobs, config, layout, members, files, notes)
    _check_conservation(plan)
    _check_memory(plan)
    return plan


def _check_conservation(plan: Plan) -> None:
    """Tensors that nothing reads are listed; in slices form that is what dropping layers means."""
    for label, names in plan.unused().items():
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        plan.notes.append(f"{label}: {len(names)} tensors are in no slice and are dropped ({shown})")


def _check_memory(plan: Plan) -> None:
    """Shrink blocks until the plan fits --max-ram; refuse when the smallest do not."""
    limit = plan.settings.max_ram
    if limit is None:
        return
    while plan.peak_memory() > limit and plan.settings.block > GRAIN:
        plan.settings = replace(plan.settings, block=max(plan.settings.block // 2 // GRAIN * GRAIN, GRAIN))
    if plan.peak_memory() > limit:
        from smelt.checkpoint import show_bytes

        needed = show_bytes(plan.peak_memory())
        plan.close()
        raise PlanError(
            f"the merge needs about {needed} of memory", where="--max-ram",
            expected=f"at most {show_bytes(limit)}", fix="use fewer --threads",
        )  # fmt: skip
