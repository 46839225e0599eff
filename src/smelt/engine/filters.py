"""Conditions of a recipe that never apply: a filter that no tensor name passes is most likely a slip."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from smelt.core.errors import Problem
from smelt.recipe import Recipe
from smelt.recipe.setting import passes


def idle_filters(recipe: Recipe, names: Collection[str]) -> list[Problem]:
    """One note per filter that passes none of ``names``, with its place in the recipe."""
    found = []
    for where, pattern in _filters(recipe):
        if not any(map(passes(pattern), names)):
            found.append(
                Problem(f"the filter {pattern!r} matches no tensor", where, fix=_nearest(pattern, names))
            )
    return found


def _filters(recipe: Recipe) -> Iterator[tuple[str, str]]:
    for where, parameters in _levels(recipe):
        for name, setting in parameters.items():
            for number, rule in enumerate(setting.rules):
                if rule.filter is not None:
                    at = f"[{number}]" if len(setting.rules) > 1 else ""
                    yield f"{where}parameters.{name}{at}.filter", rule.filter


def _levels(recipe: Recipe) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Everything that has parameters, with its path."""
    yield "", recipe.parameters
    groups: list[tuple[str, Any]] = [("", recipe)]
    groups += [(f"modules.{title}.", module) for title, module in (recipe.modules or {}).items()]
    for path, group in groups:
        if group is not recipe:
            yield path, group.parameters
        for number, entry in enumerate(group.models or ()):
            yield f"{path}models[{number}].", entry.parameters
        for number, slice_ in enumerate(group.slices or ()):
            yield f"{path}slices[{number}].", slice_.parameters
            for place, source in enumerate(slice_.sources):
                yield f"{path}slices[{number}].sources[{place}].", source.parameters


def _nearest(pattern: str, names: Collection[str]) -> str:
    parts = sorted({part for name in names for part in name.split(".") if not part.isdigit()})
    near = get_close_matches(pattern.strip("*/."), parts, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"names are made of {', '.join(parts[:12])}"
