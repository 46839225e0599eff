"""How an output came to be: recipe, fingerprints of every input and output tensor, versions, seed.

The record depends on recipe and inputs alone, so the same merge writes the same record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from smelt._version import __version__
from smelt.checkpoint import TensorDigest
from smelt.engine.plan import Plan

PROVENANCE = "smelt.json"


def record(plan: Plan, inputs: Mapping[tuple[str, str], TensorDigest], outputs: Mapping[str, str]) -> dict[str, Any]:
    """The content of smelt.json."""
    settings = plan.settings
    return {
        "smelt": __version__,
        "recipe": plan.recipe.to_dict(),
        "settings": {
            "seed": plan.recipe.seed if plan.recipe.seed is not None else settings.seed,
            "missing": settings.missing,
            "allow_nonfinite": settings.allow_nonfinite,
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
        found[member.label] = {name: digest.hexdigest() for name, digest in keys if digest is not None and digest.complete}
    return found
