"""Short ways to write recipes and carry them out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
from smelt.engine.merge import MergeReport, merge
from smelt.engine.plan import Plan, Settings, plan_merge


def entry(model: Any, **parameters: Any) -> dict[str, Any]:
    """One model of a recipe; a mapping stands for a nested recipe."""
    found: dict[str, Any] = {"model": model if isinstance(model, dict) else str(model)}
    return found | ({"parameters": parameters} if parameters else {})


def source(model: Any, first: int, last: int, **parameters: Any) -> dict[str, Any]:
    """One source of a slice."""
    return entry(model, **parameters) | {"layer_range": [first, last]}


def linear(*pairs: tuple[Any, float], **more: Any) -> dict[str, Any]:
    """A weighted average."""
    return {"merge_method": "linear", "models": [entry(model, weight=w) for model, w in pairs], **more}


def make(
    recipe: Any, out: Path, *, overwrite: bool = False, **settings: Any
) -> tuple[MergeReport, tiny.Model]:
    """Carry a recipe out and read the result."""
    report = merge(recipe, out, Settings(**settings), overwrite=overwrite)
    return report, tiny.read(out)


def planned(recipe: Any, **settings: Any) -> Plan:
    """A plan whose files are closed again."""
    plan = plan_merge(recipe, Settings(**settings))
    plan.close()
    return plan


def left_behind(folder: Path, *expected: str) -> list[str]:
    """Everything in a folder besides what is expected."""
    return sorted(path.name for path in folder.iterdir() if path.name not in expected)
