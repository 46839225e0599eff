"""Holds the models of a recipe against what its method takes: number, base, settings, repetitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from smelt.core.method import MethodSpec, Param
from smelt.recipe.cursor import Cursor
from smelt.recipe.model import Entry, Node, Recipe, Source
from smelt.recipe.setting import Setting
from smelt.recipe.vocabulary import Vocabulary

Parameters = Mapping[str, Setting]


@dataclass(frozen=True, slots=True)
class Context:
    """What holds for a group of models: the method, the base, and the settings of all outer levels."""

    spec: MethodSpec | None
    words: Vocabulary
    base: Node | None
    levels: tuple[Parameters, ...]
    has_base: bool
    reported: set[str] = field(default_factory=set)

    def inside(self, parameters: Parameters, base: Node | None = None, has_base: bool = False) -> Context:
        """The context one level further in; a base given there replaces the outer one."""
        levels = (*self.levels, parameters)
        return (
            replace(self, levels=levels, base=base, has_base=True)
            if has_base
            else replace(self, levels=levels)
        )

    @property
    def base_takes_part(self) -> bool:
        """Whether an unlisted base joins the models; for methods of one model it only donates its config."""
        return self.spec is not None and not (self.spec.base == "ignored" and self.spec.max_models == 1)

    @property
    def base_is_apart(self) -> bool:
        """Whether the base is no model of its own: deltas are taken from it."""
        return self.spec is not None and self.spec.base in ("required", "optional")


def base_model(cursor: Cursor, context: Context) -> None:
    """A method that needs a base has one, at the top or in every slice."""
    spec = context.spec
    if spec is None or context.has_base or spec.base not in ("required", "member"):
        return
    if _every_slice_has_base(cursor.raw):
        return
    role = (
        "the model that deltas are taken from"
        if spec.base == "required"
        else "the model that stands at t = 0"
    )
    cursor.error(f"{spec.name} needs base_model", role, "add `base_model: PATH`")


def _every_slice_has_base(raw: Mapping[str, Any]) -> bool:
    """Whether all parts of raw recipe data are slices with a base of their own."""
    modules = raw.get("modules")
    parts = (
        [part for part in modules.values() if isinstance(part, Mapping)]
        if isinstance(modules, Mapping)
        else []
    )
    slices: list[Any] = []
    for part in [raw, *parts]:
        if part.get("models") is not None:
            return False
        found = part.get("slices")
        slices += found if isinstance(found, list | tuple) else []
    return bool(slices) and all(
        isinstance(piece, Mapping) and piece.get("base_model") is not None for piece in slices
    )


def models(cursor: Cursor, context: Context, entries: list[Entry], *, complete: bool) -> list[Entry]:
    """Check ``models:``; returns them with the base appended where it takes part without being listed."""
    spec, base = context.spec, context.base
    if spec is None:
        return entries
    listed = base is not None and any(entry.model == base for entry in entries)
    if base is not None and complete and not listed and context.base_takes_part:
        if spec.base == "forbidden":
            cursor.error(
                f"{spec.name} has no use for base_model {base_name(base)}",
                fix="remove base_model, or list it as a model",
            )
        else:
            entries = [*entries, Entry(model=base)]
    if complete and (base is not None or not context.has_base):
        _check_group(cursor, context, entries)
    return entries


def sources(cursor: Cursor, context: Context, found: list[Source], *, complete: bool) -> list[Source]:
    """Check ``sources:``; returns them with the base appended where the method needs it."""
    lengths = [source.length for source in found]
    if len(set(lengths)) > 1:
        odd = next(index for index, length in enumerate(lengths) if length != lengths[0])
        cursor.error(
            f"sources have different numbers of layers: {lengths[0]} and {lengths[odd]}",
            "equally long layer ranges",
        )
        complete = False
    spec, base = context.spec, context.base
    if spec is None or not complete or (base is None and context.has_base):
        return found
    if base is not None and spec.base in ("required", "optional", "member"):
        found = _with_base(cursor, spec, base, found)
    _check_group(cursor, context, found)
    return found


def _with_base(cursor: Cursor, spec: MethodSpec, base: Node, found: list[Source]) -> list[Source]:
    """The sources and, where it is missing, the base with the same layers."""
    if any(source.model == base for source in found):
        return found
    ranges = {source.layer_range for source in found}
    if len(ranges) == 1:
        return [*found, Source(model=base, layer_range=ranges.pop())]
    cursor.error(
        f"{spec.name} needs the base among the sources, and their layer ranges differ",
        "the base's own layer_range",
        f"add `- {{model: {base_name(base)}, layer_range: [...]}}`",
    )  # fmt: skip
    return found


def _check_group(cursor: Cursor, context: Context, members: Sequence[Entry | Source]) -> None:
    """Checks that models and sources share."""
    spec = context.spec
    assert spec is not None
    _check_repetition(cursor, context, members)
    _check_count(cursor, context, members)
    for param in spec.params:
        if param.required and not any(param.name in level for level in context.levels):
            _check_required(cursor, context, members, param)
    for index, member in enumerate(members):
        if context.base_is_apart and member.model == context.base and member.parameters:
            names = ", ".join(member.parameters)
            cursor.child(index).warn(
                f"{names} of the base model has no effect", fix="deltas are taken from the base"
            )


def _check_repetition(cursor: Cursor, context: Context, members: Sequence[Entry | Source]) -> None:
    """The same model twice: ambiguous for the base, odd but possible for others."""
    spec = context.spec
    assert spec is not None
    seen: dict[Any, int] = {}
    for index, member in enumerate(members):
        is_base = member.model == context.base and spec.base in ("required", "optional", "member")
        key = member.model if isinstance(member, Entry) or is_base else (member.model, member.layer_range)
        if key not in seen:
            seen[key] = index
            continue
        what = f"{base_name(member.model)} stands here and at [{seen[key]}]"
        if is_base:
            cursor.child(index).error(f"the base model {what}", "the base once")
        else:
            cursor.child(index).warn(f"{what}: it counts twice", fix="in mergekit the last one alone counts")


def _check_count(cursor: Cursor, context: Context, members: Sequence[Entry | Source]) -> None:
    """As many models as the method takes."""
    spec = context.spec
    assert spec is not None
    apart = context.base_is_apart and context.base is not None
    count = sum(not (apart and member.model == context.base) for member in members)
    low, high = spec.min_models, spec.max_models
    if count >= low and (high is None or count <= high):
        return
    if apart and count == 0 and spec.base == "required" and members:
        cursor.warn("no model besides the base: the result is the base", fix="list models to merge into it")
        return
    if low == high:
        wanted = f"exactly {low}"
    elif count < low:
        wanted = f"at least {low}"
    else:
        wanted = f"at most {high}"
    noun = "model" if (low if count < low else high) == 1 else "models"
    besides = (
        " besides the base" if apart else ", the base being one of them" if spec.base == "member" else ""
    )
    fix = "to copy one model, use `merge_method: passthrough`" if apart and count == 0 else ""
    cursor.error(
        f"{spec.name} got {count} model{'s' if count != 1 else ''}{besides}", f"{wanted} {noun}", fix
    )


def _check_required(
    cursor: Cursor, context: Context, members: Sequence[Entry | Source], param: Param
) -> None:
    """A required parameter that no outer level sets is set by every model, or once for a global one."""
    assert context.spec is not None
    method, name = context.spec.name, param.name
    example = (
        param.choices[0]
        if param.choices
        else "true"
        if param.kind == "bool"
        else "1"
        if param.kind == "int"
        else "0.5"
    )
    if not param.per_model:
        if name not in context.reported and not _misplaced(cursor, name):
            context.reported.add(name)
            cursor.error(
                f"{method} needs {name!r}",
                param.expected(),
                f"add `parameters: {{{name}: {example}}}` to the recipe",
            )
        return
    waived = context.spec.base in ("required", "optional", "member")
    for index, member in enumerate(members):
        listed = index < len(cursor.raw)
        if name in member.parameters or (waived and member.model == context.base):
            continue
        if listed and cursor.child(index).failed:
            continue  # most likely the setting is there and misspelled
        fix = f"add `parameters: {{{name}: {example}}}` to it, or to the recipe for all models"
        if listed:
            cursor.child(index).error(f"{method} needs {name!r} of every model", param.expected(), fix)
        else:
            cursor.error(
                f"base_model {base_name(member.model)} is one more model of {method} and has no {name!r}",
                param.expected(),
                f"list it under models with its own {name!r}, or remove base_model",
            )


def _misplaced(cursor: Cursor, name: str) -> bool:
    """Whether a global parameter stands under a model, which is an error of its own."""
    items = [item.child("parameters") for item in cursor.items() if isinstance(item.raw, Mapping)]
    return any(item.has(name) for item in items)


def advise(cursor: Cursor, context: Context, recipe: Recipe) -> None:
    """Warn where settings that are valid do something users did not expect."""
    spec = context.spec
    entries = recipe.models or ()
    if spec is None or spec.base not in ("ignored", "forbidden") or len(entries) < 2:
        return
    normalize, weight = spec.param("normalize"), spec.param("weight")
    if normalize is None or weight is None or not weight.per_model:
        return
    setting = recipe.parameters.get("normalize")
    if not (setting.constant if setting else normalize.default):
        return
    found = [entry.parameters["weight"].constant for entry in entries if "weight" in entry.parameters]
    weights = [value for value in found if isinstance(value, int | float)]
    if len(weights) < len(entries):
        return
    total = sum(weights)
    if abs(total - 1) > 1e-6 and len(set(weights)) > 1 and total:
        shown = ", ".join(f"{value / total:.4g}" for value in weights)
        cursor.warn(
            f"the weights add up to {total:.6g} and are divided by that: {shown}",
            fix="add `normalize: false` to the recipe's parameters to keep them as they are",
        )


def base_name(node: Node) -> str:
    """A model or recipe in a few words."""
    return f"(a {node.merge_method} recipe)" if isinstance(node, Recipe) else repr(str(node))
