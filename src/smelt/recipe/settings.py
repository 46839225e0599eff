"""Reads ``parameters:`` blocks: shapes of settings, kinds and bounds of values, which level may set what."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from smelt.core.errors import RecipeError
from smelt.core.method import Param
from smelt.recipe.cursor import Cursor, Findings, describe, nearest
from smelt.recipe.document import Document
from smelt.recipe.setting import LARGEST, Rule, Scalar, Setting, passes, read_number
from smelt.recipe.vocabulary import Vocabulary, unknown_parameter_fix

LevelName = Literal["model", "slice", "module", "recipe"]

_SHAPES = "a value, a list of values, {value, filter}, or a list of {value, filter}"


def setting_of(value: object) -> Setting:
    """A setting on its own, outside a recipe."""
    if isinstance(value, Setting):
        return value
    findings = Findings()
    setting = read_setting(Cursor(value, Document(value), findings), None)
    if setting is None:
        raise RecipeError(findings.errors)
    return setting


def read_parameters(cursor: Cursor, words: Vocabulary, level: LevelName) -> dict[str, Setting]:
    """The settings of one ``parameters:`` block (null is an empty one)."""
    if cursor.raw is None:
        return {}
    if not isinstance(cursor.raw, Mapping):
        fix = "remove the dashes in front of the names" if isinstance(cursor.raw, list | tuple) else ""
        cursor.error(f"parameters is {cursor.shown()}", "a mapping of names to values", fix)
        return {}
    settings = {}
    for name in cursor.raw:
        child = cursor.child(name)
        param = _find_param(child, name, words, level)
        if param is None and words.spec is not None:
            continue
        setting = read_setting(child, param)
        if setting is not None:
            settings[name] = setting
    return settings


def _find_param(cursor: Cursor, name: object, words: Vocabulary, level: LevelName) -> Param | None:
    """The parameter of that name if it may stand at this level; else an error."""
    if words.spec is None:
        return None
    method = words.spec.name
    param = words.spec.param(name) if isinstance(name, str) else None
    if param is None:
        cursor.error(f"{method} has no parameter {name!r}", fix=unknown_parameter_fix(str(name), words))
        return None
    if level == "model" and not param.per_model:
        cursor.error(
            f"{name!r} belongs to the merge as a whole, not to one model",
            fix="move it to the `parameters:` of the recipe or of the slice",
        )
        return None
    if param.no_effect:
        cursor.warn(f"{name!r} has no effect: {param.no_effect}")
    return param


def read_setting(cursor: Cursor, param: Param | None) -> Setting | None:
    """A setting in any of its shapes; None after an error."""
    raw = cursor.raw
    if hasattr(raw, "tolist"):  # numpy and torch scalars and vectors
        return read_setting(replace(cursor, raw=raw.tolist()), param)
    if isinstance(raw, Setting):
        return _recheck(cursor, raw, param)
    if isinstance(raw, Mapping):
        rule = _read_rule(cursor, param)
        return Setting((rule,)) if rule else None
    if isinstance(raw, list | tuple):
        return _read_list(cursor, param)
    value = read_value(cursor, param)
    return None if value is None else Setting((Rule((value,)),))


def _recheck(cursor: Cursor, setting: Setting, param: Param | None) -> Setting | None:
    """A ready setting from Python, held against the parameter it is given to."""
    return read_setting(replace(cursor, raw=setting.to_plain()), param)


def _read_list(cursor: Cursor, param: Param | None) -> Setting | None:
    """A gradient, or a list of {value, filter}."""
    mappings = [isinstance(item, Mapping) for item in cursor.raw]
    if not mappings:
        cursor.error("an empty list", _SHAPES)
        return None
    if all(mappings):
        rules = [_read_rule(item, param) for item in cursor.items()]
        found = [rule for rule in rules if rule is not None]
        if len(found) < len(rules):
            return None
        _warn_unreachable(cursor, found)
        return Setting(tuple(found))
    if any(mappings):
        cursor.error("a list that mixes plain values with {value, filter}", _SHAPES)
        return None
    values = _read_values(cursor, param)
    return Setting((Rule(values),)) if values else None


def _read_values(cursor: Cursor, param: Param | None) -> tuple[Scalar, ...] | None:
    """The anchors of a gradient."""
    if not cursor.raw:
        cursor.error("an empty list", "at least one value")
        return None
    values = [read_value(item, param) for item in cursor.items()]
    kept = tuple(value for value in values if value is not None)
    return kept if len(kept) == len(values) else None


def _read_rule(cursor: Cursor, param: Param | None) -> Rule | None:
    """One {value, filter}."""
    before = len(cursor.findings.errors)
    for key in cursor.raw:
        if key not in ("value", "filter"):
            cursor.child(key).error(f"unknown key {key!r}", fix=nearest(str(key), ["value", "filter"]))
    pattern = _read_filter(cursor.child("filter")) if cursor.has("filter") else None
    values: tuple[Scalar, ...] | None = None
    if not cursor.has("value"):
        if len(cursor.findings.errors) == before:
            cursor.error("a condition without a value", "{value: ..., filter: ...}")
    elif isinstance(cursor.raw["value"], list | tuple):
        values = _read_values(cursor.child("value"), param)
    else:
        value = read_value(cursor.child("value"), param)
        values = None if value is None else (value,)
    return Rule(values, pattern) if values and len(cursor.findings.errors) == before else None


def _read_filter(cursor: Cursor) -> str | None:
    """A filter; ``*`` is the same as none."""
    pattern = cursor.raw
    if not isinstance(pattern, str):
        pattern = cursor.spelled if isinstance(pattern, int | float) else None
    if not pattern:
        cursor.error(f"filter is {cursor.shown()}", "part of a tensor name, a glob with * or ?, or /a regex/")
        return None
    try:
        passes(pattern)
    except re.error as error:
        cursor.error(f"filter {pattern!r} is not a valid regular expression: {error}")
    return None if pattern == "*" else pattern


def _warn_unreachable(cursor: Cursor, rules: list[Rule]) -> None:
    """A condition after one that takes every name can never apply."""
    for index, rule in enumerate(rules[:-1]):
        if rule.filter is None:
            cursor.child(index + 1).warn(
                "this condition is never reached", fix="move the one without a filter to the end of the list"
            )
            return


def read_value(cursor: Cursor, param: Param | None) -> Scalar | None:
    """One value, brought to the parameter's kind and held against its bounds; None after an error."""
    value = _coerce(cursor, param)
    if value is None:
        return None
    if param is not None and not param.accepts(value):
        fix = nearest(value, param.choices) if param.kind == "choice" and isinstance(value, str) else ""
        cursor.error(f"{param.name} is {cursor.shown()}", param.expected(), fix)
        return None
    return bool(value) if param is not None and param.kind == "bool" else value


def _coerce(cursor: Cursor, param: Param | None) -> Scalar | None:
    """The raw value as number, boolean or word, whichever the parameter takes."""
    raw = cursor.raw
    kind = param.kind if param else None
    expected = param.expected() if param else _SHAPES
    if kind == "choice":
        return _as_choice(cursor, param)
    if isinstance(raw, str):
        return _from_text(cursor, param, expected)
    if isinstance(raw, bool):
        if kind in ("float", "int"):
            written = f" (YAML reads {cursor.spelled} as {describe(raw)})" if _is_trap(cursor) else ""
            cursor.error(
                f"{_label(cursor, param)} is {describe(raw)}{written}", expected, f"write {int(raw)}"
            )
            return None
        return raw
    if isinstance(raw, int | float):
        if not abs(raw) <= LARGEST:
            cursor.error(f"{_label(cursor, param)} is {cursor.shown()}", "a finite number")
            return None
        return _number_of_kind(raw, kind)
    cursor.error(f"{_label(cursor, param)} is {cursor.shown()}", expected)
    return None


def _from_text(cursor: Cursor, param: Param | None, expected: str) -> Scalar | None:
    """Text where a number or a boolean belongs: numeric strings count, the rest is an error with advice."""
    raw: str = cursor.raw
    kind = param.kind if param else None
    if kind == "bool" and raw.lower() in ("true", "false"):
        return raw.lower() == "true"
    number, advice = read_number(raw)
    if number is None and kind is None and not advice:
        return raw
    if number is None:
        cursor.error(f"{_label(cursor, param)} is {cursor.shown()}", expected, advice)
        return None
    return _number_of_kind(number, kind)


def _number_of_kind(number: float | int, kind: str | None) -> Scalar:
    """One spelling for each value, so that equal recipes look equal."""
    if kind == "float":
        return float(number)
    return int(number) if kind == "int" and number == int(number) else number


def _as_choice(cursor: Cursor, param: Param | None) -> Scalar | None:
    """A word of a choice; `off`, `no` or `true` count as words when the choice has them."""
    raw: Any = cursor.raw
    if isinstance(raw, str):
        return raw
    words = (cursor.spelled, describe(raw))
    found = next((word for word in words if param is not None and word in param.choices), None)
    if found is None and param is not None:
        cursor.error(f"{param.name} is {cursor.shown()}", param.expected())
    return found


def _label(cursor: Cursor, param: Param | None) -> str:
    """What to call the value in a message."""
    if param is not None:
        return param.name
    return cursor.key or "the value"


def _is_trap(cursor: Cursor) -> bool:
    """Whether YAML turned a word such as `on` or `no` into a boolean."""
    return (cursor.spelled or "").lower() in ("on", "off", "yes", "no")
