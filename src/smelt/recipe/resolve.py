"""Which level of a recipe decides a parameter for one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from smelt.core.method import REQUIRED, Param
from smelt.recipe.setting import Scalar, Setting


class HasParameters(Protocol):
    """An entry, source, slice, module or recipe."""

    @property
    def parameters(self) -> Mapping[str, Setting]: ...


Level = HasParameters | Mapping[str, Setting] | None


@dataclass(frozen=True, slots=True)
class Resolved:
    """A parameter's value for one tensor, and who set it.

    ``level`` is ``model``, ``slice``, ``module``, ``recipe``, ``default``, ``base`` (a required parameter,
    waived for the base model: None) or ``missing`` (a required one nobody set for this tensor: REQUIRED).
    """

    value: Any
    level: str


def resolve(
    param: Param,
    *,
    entry: Level = None,
    slice_: Level = None,
    module: Level = None,
    top: Level = None,
    output_name: str,
    input_name: str | None = None,
    t: float = 0.0,
    is_base: bool = False,
) -> Resolved:
    """The first level that has a value for this tensor wins: model, slice, module, recipe, then the default.

    Filters of per-model parameters see the tensor's name in that model, those of global parameters its name
    in the output. A setting none of whose filters passes falls through to the next level.
    """
    name = input_name if param.per_model and input_name is not None else output_name
    levels: tuple[tuple[str, Level], ...] = (
        ("model", entry if param.per_model else None), ("slice", slice_), ("module", module), ("recipe", top)
    )  # fmt: skip
    for label, level in levels:
        setting = _settings(level).get(param.name)
        value = setting.evaluate(name, t) if setting is not None else None
        if value is not None:
            return Resolved(_of_kind(value, param), label)
    if not param.required:
        return Resolved(param.default, "default")
    return Resolved(None, "base") if is_base else Resolved(REQUIRED, "missing")


def _settings(level: Level) -> Mapping[str, Setting]:
    if level is None:
        return {}
    return level if isinstance(level, Mapping) else level.parameters


def _of_kind(value: Scalar, param: Param) -> Scalar:
    """The value as the Python type the method declares; whole-number gradients round to the nearest."""
    if param.kind == "float":
        return float(value)
    if param.kind == "int":
        return round(float(value))
    return bool(value) if param.kind == "bool" else value
