"""The Python API: recipe nodes that plan, save and load, and merges of tensors already in memory."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from smelt.core.errors import RecipeError, did_you_mean
from smelt.core.method import MethodSpec
from smelt.recipe import ModelRef, Recipe, load_recipe

if TYPE_CHECKING:
    from smelt.checkpoint import VerifyReport
    from smelt.engine.merge import MergeReport
    from smelt.engine.plan import Plan

ModelLike = Union[str, Path, ModelRef, Recipe, "Merge"]

#: keywords of a method function that belong to the recipe, not to the method
_FIELDS = (
    "dtype",
    "out_dtype",
    "seed",
    "name",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "slices",
    "modules",
)


class Merge:
    """A recipe that can be checked, carried out, loaded, or used as a model of another merge."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __repr__(self) -> str:
        return f"<smelt.Merge {self.recipe.merge_method} of {', '.join(map(str, self.recipe.refs()))}>"

    def plan(self, **options: Any) -> Plan:
        """Everything that can be known before a weight is read; raises with every problem at once."""
        from smelt.engine.plan import plan_merge

        return plan_merge(self.recipe, _settings(options))

    def save(self, directory: str | Path, *, overwrite: bool = False, **options: Any) -> MergeReport:
        """Write a verified checkpoint. Options: threads, device, shard_size, max_ram, seed, missing, allow_nonfinite."""
        from smelt.engine.merge import merge

        return merge(self.recipe, directory, _settings(options), overwrite=overwrite)

    def tensors(self, **options: Any) -> dict[str, Any]:
        """The merged tensors as torch tensors, in memory."""
        from smelt.engine.memory import merge_to_memory

        plan = self.plan(**options)
        try:
            return merge_to_memory(plan)
        finally:
            plan.close()

    def load(self, *, torch_dtype: Any = None, **options: Any) -> Any:
        """A transformers model made in memory, in evaluation mode; nothing is written."""
        from smelt.engine.memory import load_model

        plan = self.plan(**options)
        try:
            return load_model(plan, torch_dtype)
        finally:
            plan.close()

    def to_yaml(self) -> str:
        """The recipe as YAML that ``smelt merge`` takes."""
        return self.recipe.to_yaml()


def model(path: str | Path, *, revision: str | None = None) -> ModelRef:
    """A model on disk or on the Hub, its path taken literally.

    >>> print(model("org/model", revision="main"))
    org/model@main
    """
    return ModelRef(path=str(path), revision=revision)


def recipe(source: str | Path | Mapping[str, Any]) -> Merge:
    """A recipe from a YAML file, YAML text or a mapping."""
    from smelt.methods import REGISTRY

    return Merge(load_recipe(source, methods=REGISTRY))


def load(source: str | Path | Mapping[str, Any], **options: Any) -> Any:
    """The transformers model a recipe makes, in memory."""
    return recipe(source).load(**options)


def verify(directory: str | Path, *, threads: int = 2) -> VerifyReport:
    """Re-read every byte of a checkpoint and compare it with its record and its config."""
    from smelt.checkpoint import verify_directory

    return verify_directory(directory, threads=threads)


@cache
def method_function(name: str) -> Callable[..., Merge]:
    """The function ``smelt.NAME`` that builds a node of that method."""
    from smelt.methods import REGISTRY

    spec = REGISTRY.find(name)

    def build(models: Sequence[Any], base: ModelLike | None = None, **settings: Any) -> Merge:
        return _build(spec, models, base, settings)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = _document(spec)
    build.__signature__ = _signature(spec)  # type: ignore[attr-defined]
    return build


def _refuse_single(value: Any, what: str) -> None:
    """One thing where a list is meant would be taken apart."""
    if isinstance(value, str | Path | Mapping) or hasattr(value, "shape") or not isinstance(value, Sequence):
        raise RecipeError(f"{what} is a single {type(value).__name__}", expected=f"a list of {what}")


def _build(
    spec: MethodSpec, models: Sequence[Any], base: ModelLike | None, settings: dict[str, Any]
) -> Merge:
    from smelt.methods import REGISTRY

    _refuse_single(models, "models")
    fields = {key: settings.pop(key) for key in _FIELDS if key in settings}
    shared: dict[str, Any] = {}
    own: list[dict[str, Any]] = [dict(item[1]) if isinstance(item, tuple) else {} for item in models]
    for key, value in settings.items():
        param = spec.param(key.rstrip("_"))
        if param is None:
            raise RecipeError(
                f"{spec.name} has no parameter {key!r}",
                fix=did_you_mean(key, [item.name for item in spec.params]),
            )
        if param.per_model and isinstance(value, list | tuple):
            if len(value) != len(models):
                raise RecipeError(
                    f"{key} has {len(value)} values for {len(models)} models",
                    where=spec.name,
                    expected="one per model",
                )
            for place, item in zip(own, value, strict=True):
                place.setdefault(param.name, item)
        else:
            shared[param.name] = value
    pairs = [
        (_node(item[0] if isinstance(item, tuple) else item), place)
        for item, place in zip(models, own, strict=True)
    ]
    built = Recipe.build(
        spec.name, pairs, _node(base) if base is not None else None, shared, methods=REGISTRY, **fields
    )
    return Merge(built)


def _node(value: ModelLike) -> Any:
    if isinstance(value, Merge):
        return value.recipe
    return str(value) if isinstance(value, Path) else value


def _document(spec: MethodSpec) -> str:
    lines = [spec.summary, ""] + ([f"    {spec.formula}", ""] if spec.formula else [])
    lines += ["``models``: paths, references, other merges, or pairs (model, {parameter: value}).", ""]
    lines += [
        f"{param.name}: {param.doc} ({'one per model; ' if param.per_model else ''}{param.expected()})"
        for param in spec.params
    ]
    return "\n".join(lines)


def _signature(spec: MethodSpec) -> inspect.Signature:
    kinds = inspect.Parameter
    shown = [
        kinds("models", kinds.POSITIONAL_OR_KEYWORD),
        kinds("base", kinds.POSITIONAL_OR_KEYWORD, default=None),
    ]
    for param in spec.params:
        name = "lambda_" if param.name == "lambda" else param.name
        shown.append(
            kinds(name, kinds.KEYWORD_ONLY, default=kinds.empty if param.required else param.default)
        )
    shown.append(kinds("fields", kinds.VAR_KEYWORD))
    return inspect.Signature(shown)


def _settings(options: dict[str, Any]) -> Any:
    from smelt.checkpoint import parse_size
    from smelt.engine.plan import Settings

    known = Settings.__dataclass_fields__
    for key in options:
        if key not in known:
            raise RecipeError(f"unknown option {key!r}", fix=did_you_mean(key, list(known)))
    for key in ("shard_size", "max_ram"):
        if isinstance(options.get(key), str):
            options[key] = parse_size(options[key])
    return Settings(**options)


def merge_tensors(
    method: str,
    tensors: Sequence[Any],
    base: Any = None,
    *,
    name: str = "tensor",
    seed: int = 0,
    dtype: Any = None,
    **parameters: Any,
) -> Any:
    """Merge single tensors (torch or numpy, all of one kind) by any method; the result is of the same kind,
    and of the first one's dtype unless ``dtype`` says otherwise.

    >>> import numpy as np
    >>> merge_tensors("linear", [np.ones(3, np.float32), np.zeros(3, np.float32)], weight=[0.25, 0.75]).tolist()
    [0.25, 0.25, 0.25]
    """
    from smelt.engine.memory import merge_dicts

    _refuse_single(tensors, "tensors")
    bases = None if base is None else {name: base}
    return merge_dicts(method, [{name: tensor} for tensor in tensors], bases, seed, parameters, dtype)[name]


def merge_state_dicts(
    method: str,
    states: Sequence[Mapping[str, Any]],
    base: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    dtype: Any = None,
    **parameters: Any,
) -> dict[str, Any]:
    """Merge whole state dicts in memory. Every tensor must be in each of them, with one shape.

    ``dtype`` is the type of the result ("bfloat16", torch.float32, ...); by default that of the first model.

    >>> import numpy as np
    >>> a, b = {"w": np.float32([2, 4])}, {"w": np.float32([0, 0])}
    >>> merge_state_dicts("task_arithmetic", [a], b, weight=[0.5])["w"].tolist()
    [1.0, 2.0]
    """
    from smelt.engine.memory import merge_dicts

    _refuse_single(states, "states")
    return merge_dicts(method, states, base, seed, parameters, dtype)
