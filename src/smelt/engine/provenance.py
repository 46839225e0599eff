"""How an output came to be: recipe, fingerprints of every input and output tensor, versions, seed.

The record depends on recipe and inputs alone, so the same merge writes the same record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smelt._version import __version__
from smelt.checkpoint import TensorDigest
from smelt.core.errors import CheckpointError, Problem
from smelt.engine.plan import Plan

PROVENANCE = "smelt.json"


def record(
    plan: Plan, inputs: Mapping[tuple[str, str], TensorDigest], outputs: Mapping[str, str]
) -> dict[str, Any]:
    """The content of smelt.json."""
    settings = plan.settings
    return {
        "smelt": __version__,
        "recipe": plan.recipe.to_dict(),
        "settings": {
            "seed": plan.recipe.seed if plan.recipe.seed is not None else settings.seed,
            "missing": settings.missing,
            "allow_nonfinite": settings.allow_nonfinite,
            "by_position": settings.by_position,
            "shard_size": settings.shard_size,
        },
        "inputs": _inputs(plan, inputs),
        "outputs": dict(outputs),
        "notes": list(plan.notes),
    }


def _inputs(plan: Plan, digests: Mapping[tuple[str, str], TensorDigest]) -> dict[str, dict[str, str]]:
    """Model -> tensor -> fingerprint, for every tensor that was read in full."""
    found: dict[str, dict[str, str]] = {}
    for member in plan.members.by_ref.values():
        if member is None or member.checkpoint is None:
            continue
        keys = ((name, digests.get((str(part.meta.file), name))) for name, part in member.parts.items())
        found[member.label] = {
            name: digest.hexdigest() for name, digest in keys if digest is not None and digest.complete
        }
    return found


@dataclass(frozen=True)
class RerunReport:
    """How a merge made again compares with the recorded one."""

    path: Path
    tensors: int
    same: int
    changed_inputs: tuple[str, ...]
    problems: tuple[Problem, ...]
    versions: tuple[str, str]

    @property
    def ok(self) -> bool:
        """Whether every output tensor came out the same."""
        return not self.problems


def read_record(directory: Path) -> dict[str, Any]:
    """The provenance of a finished merge."""
    path = directory / PROVENANCE
    try:
        past = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            "has no smelt.json", where=str(directory), expected="a directory made by smelt merge"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot be read ({error})", where=str(path)) from None
    lacking = {"recipe", "settings", "inputs", "outputs"} - (past.keys() if isinstance(past, dict) else set())
    if lacking:
        raise CheckpointError(
            f"lacks {', '.join(sorted(lacking))}", where=str(path), expected="a record written by smelt merge"
        )
    return past


def compare_records(path: Path, past: Mapping[str, Any], fresh: Mapping[str, Any]) -> RerunReport:
    """Every output tensor that came out otherwise, and every input that is no longer the same."""
    old, new = past["outputs"], fresh["outputs"]
    problems = [
        Problem(
            "came out differently" if name in new and name in old else "is in only one of the two runs",
            f"tensor {name!r}",
        )
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]
    found = list(fresh["inputs"].values())  # by position: a model may have moved since
    changed = [
        f"{model}: {name}"
        for place, (model, tensors) in enumerate(past["inputs"].items())
        for name, digest in tensors.items()
        if (found[place] if place < len(found) else {}).get(name) != digest
    ]
    same = sum(old.get(name) == digest for name, digest in new.items())
    return RerunReport(
        path, len(new), same, tuple(changed), tuple(problems), (past.get("smelt", "?"), fresh["smelt"])
    )
