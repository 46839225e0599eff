"""What a merge method is: a plain function whose signature is its schema, and the registry that finds it.

A method is one file in ``smelt/methods``::

    @method(base="required", summary="Base plus the weighted sum of task vectors.")
    def task_arithmetic(base, models, *, weight: Annotated[list[float], Param(doc="...")],
                        lambda_: Annotated[float, Param(doc="...")] = 1.0):
        ...

``list[...]`` parameters are per model, all others are global. A trailing underscore keeps Python's
keywords out of the way: ``lambda_`` is ``lambda`` in recipes. The decorator returns the function itself.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from smelt.core.errors import MethodError, SmeltError, did_you_mean

Base = Literal["required", "optional", "member", "ignored", "forbidden"]
Kind = Literal["float", "int", "bool", "choice"]


class _Required:
    """Marks a parameter that has no default."""

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = _Required()


@dataclass(frozen=True, slots=True)
class Param:
    """One parameter of a method. ``lo``/``hi`` are inclusive bounds; ``per_model`` is read from the annotation."""

    doc: str = ""
    lo: float | None = None
    hi: float | None = None
    choices: tuple[str, ...] = ()
    default: Any = REQUIRED
    name: str = ""
    kind: Kind = "float"
    per_model: bool = False
    no_effect: str = ""

    @property
    def required(self) -> bool:
        """True when a recipe must set it."""
        return self.default is REQUIRED

    def expected(self) -> str:
        """What a value must look like, for messages.

        >>> Param(lo=0, hi=1).expected()
        'a number from 0 to 1'
        """
        if self.kind == "choice":
            return "one of " + ", ".join(self.choices)
        if self.kind == "bool":
            return "true or false"
        noun = "a whole number" if self.kind == "int" else "a number"
        if self.lo is not None and self.hi is not None:
            return f"{noun} from {self.lo:g} to {self.hi:g}"
        if self.lo is not None:
            return f"{noun} of at least {self.lo:g}"
        if self.hi is not None:
            return f"{noun} of at most {self.hi:g}"
        return noun

    def accepts(self, value: object) -> bool:
        """Whether a plain (already evaluated) value is of the right kind and within bounds."""
        if self.kind == "choice":
            return value in self.choices
        if self.kind == "bool":
            return isinstance(value, bool) or value in (0, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
            return False
        if self.kind == "int" and value != int(value):
            return False
        return (self.lo is None or value >= self.lo) and (self.hi is None or value <= self.hi)


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """Everything smelt knows about a method; recipes, docs, help, schema and law tests follow from it.

    ``base``: "required" (deltas are taken from it), "optional", "member" (the base is one of the models, as in
    slerp), "ignored" (accepted; counts as one more model, as in karcher), "forbidden".
    ``min_models``/``max_models`` count the models besides a required or optional base, and all models otherwise.
    ``ordered``: the result depends on the order of models. ``random``: the seed matters.
    """

    name: str
    combine: Callable[..., Any]
    summary: str
    base: Base
    params: tuple[Param, ...]
    measure: Callable[..., Any] | None = None
    min_models: int = 1
    max_models: int | None = None
    unit: Literal["element", "row", "tensor"] = "element"
    ordered: bool = False
    random: bool = False
    formula: str = ""
    paper: str = ""
    group: str = "specialised"
    example: str = ""
    exempt: Mapping[str, str] = field(default_factory=dict)

    def param(self, name: str) -> Param | None:
        """The parameter of that recipe name, or None."""
        return next((param for param in self.params if param.name == name), None)

    @property
    def per_model_params(self) -> tuple[Param, ...]:
        """Parameters that each model sets for itself."""
        return tuple(param for param in self.params if param.per_model)

    @property
    def global_params(self) -> tuple[Param, ...]:
        """Parameters of the merge as a whole."""
        return tuple(param for param in self.params if not param.per_model)


#: where the decorator leaves what it read
_ATTRIBUTE = "__smelt_method__"


def method(
    *,
    base: Base,
    summary: str,
    measure: Callable[..., Any] | None = None,
    min_models: int = 1,
    max_models: int | None = None,
    unit: Literal["element", "row", "tensor"] = "element",
    ordered: bool = False,
    random: bool = False,
    formula: str = "",
    paper: str = "",
    group: str = "specialised",
    example: str = "",
    exempt: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a merge method. Refuses a bad signature here, naming the argument and the fix."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        spec = MethodSpec(
            name=function.__name__, combine=function, summary=summary, base=base, params=read_params(function),
            measure=measure, min_models=min_models, max_models=max_models, unit=unit, ordered=ordered,
            random=random, formula=formula, paper=paper, group=group, example=example,
            exempt=MappingProxyType(dict(exempt or {})),
        )  # fmt: skip
        setattr(function, _ATTRIBUTE, spec)
        return function

    return decorate


def read_params(function: Callable[..., Any]) -> tuple[Param, ...]:
    """The parameters of a method, from the keyword-only arguments of its signature."""
    hints = get_type_hints(function, include_extras=True)
    found = []
    for argument in inspect.signature(function).parameters.values():
        if argument.kind is inspect.Parameter.KEYWORD_ONLY:
            found.append(_read_param(function.__name__, argument, hints.get(argument.name)))
        elif argument.name not in ("base", "models", "stats"):
            raise MethodError(
                f"unknown positional argument {argument.name!r}", where=f"method {function.__name__}",
                expected="base, models, stats, then keyword-only parameters after *",
            )  # fmt: skip
    return tuple(found)


def _read_param(owner: str, argument: inspect.Parameter, hint: Any) -> Param:
    where = f"method {owner}, argument {argument.name}"
    example = f"{argument.name}: Annotated[float, Param(doc='...')] = 1.0"
    if get_origin(hint) is not Annotated:
        raise MethodError("has no Annotated type", where=where, fix=f"write it like `{example}`")
    plain, *notes = get_args(hint)
    note = next((item for item in notes if isinstance(item, Param)), None)
    if note is None or not note.doc:
        raise MethodError("has no Param(doc=...) note", where=where, fix=f"write it like `{example}`")
    per_model = get_origin(plain) is list
    if per_model:
        (plain,) = get_args(plain)
    kinds: dict[Any, Kind] = {float: "float", int: "int", bool: "bool", str: "choice"}
    if plain not in kinds:
        raise MethodError(
            f"has type {plain!r}", where=where, expected="float, int, bool, str or a list of one"
        )
    default = note.default
    if argument.default is not inspect.Parameter.empty:
        default = argument.default
    return replace(
        note, name=argument.name.rstrip("_"), kind=kinds[plain], per_model=per_model, default=default
    )


def spec_of(function: Callable[..., Any]) -> MethodSpec:
    """The declaration behind a decorated function."""
    spec = getattr(function, _ATTRIBUTE, None)
    if spec is None:
        raise MethodError(f"{function!r} is not a merge method", fix="decorate it with @method(...)")
    return spec


class Registry(Mapping[str, MethodSpec]):
    """Merge methods by name. Unknown names come back as advice."""

    def __init__(self) -> None:
        self._specs: dict[str, MethodSpec] = {}

    def add(self, spec: MethodSpec) -> None:
        """Register one method; a second one of the same name is refused."""
        known = self._specs.get(spec.name)
        if known is not None and known.combine is not spec.combine:
            raise MethodError(f"method {spec.name!r} is declared twice", fix="rename one of them")
        self._specs[spec.name] = spec

    def __getitem__(self, name: str) -> MethodSpec:
        return self._specs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def find(self, name: str) -> MethodSpec:
        """The method of that name, or an error with the nearest one."""
        try:
            return self._specs[name]
        except KeyError:
            raise SmeltError(f"unknown merge method {name!r}", fix=did_you_mean(name, list(self))) from None


def discover(package: str) -> Registry:
    """Import every module of a package (except those with a leading underscore) and collect its methods."""
    registry = Registry()
    parent = importlib.import_module(package)
    for info in sorted(pkgutil.iter_modules(parent.__path__), key=lambda item: item.name):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package}.{info.name}")
        for value in vars(module).values():
            spec = getattr(value, _ATTRIBUTE, None)
            if spec is not None and spec.combine.__module__ == module.__name__:
                registry.add(spec)
    return registry
