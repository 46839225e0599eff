"""A merge as plain data: one job per output tensor, each knowing its inputs and effective parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Union

from smelt.core.types import TensorMeta, TensorSpec
from smelt.engine.members import FilePart

Part = Union["Job", FilePart]


@dataclass(frozen=True)
class Job:
    """How one output tensor comes to be."""

    spec: TensorSpec
    method: str
    base: Part | None
    models: tuple[Part, ...]
    labels: tuple[str, ...]  # of base (if any) and models
    params: Mapping[str, Any]
    levels: Mapping[str, Any]
    kind: Literal["merge", "copy"] = "merge"
    layer: str = ""
    t: float = 0.0
    seed: int = 0
    stream: str = ""  # names the random stream; nested merges must not share one
    fixed_dtype: bool = False  # a recipe chose the dtype: a nested result is rounded to it
    note: str = ""

    @property
    def where(self) -> str:
        """For messages."""
        return f"the nested {self.method} of {', '.join(self.labels)}"

    @property
    def inputs(self) -> tuple[Part, ...]:
        """Base first, if there is one."""
        return (self.base, *self.models) if self.base is not None else self.models

    def files(self) -> Iterator[FilePart]:
        """Every tensor on disk this job reads, nested ones too."""
        for part in self.inputs:
            if isinstance(part, FilePart):
                yield part
            else:
                yield from part.files()


@dataclass
class Draft:
    """What planning one recipe (top or nested) yields."""

    jobs: dict[str, Job] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def as_metas(jobs: Mapping[str, Job]) -> dict[str, TensorMeta]:
    """The outputs described like tensors on disk, for reading their structure."""
    return {name: TensorMeta(name, job.spec.dtype, job.spec.shape, Path(), 0) for name, job in jobs.items()}
