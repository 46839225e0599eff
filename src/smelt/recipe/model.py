"""The recipe as frozen data: what ``load_recipe`` returns and the engine reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf, model_validator

from smelt.core.errors import Problem, RecipeError
from smelt.core.method import MethodSpec
from smelt.recipe.reference import ModelRef
from smelt.recipe.setting import Setting

AnySetting = Annotated[InstanceOf[Setting], BeforeValidator(Setting.of)]
Parameters = dict[str, AnySetting]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Entry(_Frozen):
    """One model of a merge."""

    model: ModelRef | Recipe = Field(description="A model, or a recipe whose result stands for one.")
    parameters: Parameters = Field(default_factory=dict, description="Settings of this model alone.")


class Source(_Frozen):
    """One model's layers inside a slice."""

    model: ModelRef | Recipe = Field(description="A model, or a recipe whose result stands for one.")
    layer_range: tuple[int, int] = Field(description="First layer, and the layer after the last.")
    parameters: Parameters = Field(default_factory=dict, description="Settings of this model in this slice.")

    @property
    def length(self) -> int:
        """Number of layers."""
        return self.layer_range[1] - self.layer_range[0]


class Slice(_Frozen):
    """A run of output layers, merged from equally long runs of input layers."""

    sources: tuple[Source, ...] = Field(min_length=1, description="Which layers of which models are merged.")
    base_model: ModelRef | Recipe | None = Field(default=None, description="The base of this slice only.")
    residual_weight: float | None = Field(
        default=None, description="Accepted and without effect, as in mergekit."
    )
    parameters: Parameters = Field(default_factory=dict, description="Settings of this slice.")

    @property
    def length(self) -> int:
        """Number of layers this slice adds to the output."""
        return self.sources[0].length


class Module(_Frozen):
    """The recipe of one part of a model that has several (text tower, vision tower, ...)."""

    models: tuple[Entry, ...] | None = Field(default=None, description="Models merged layer by layer.")
    slices: tuple[Slice, ...] | None = Field(
        default=None, description="Output layers from chosen input layers."
    )
    parameters: Parameters = Field(default_factory=dict, description="Settings of this module.")


class ZeroRow(_Frozen):
    """An embedding row of zeros."""

    kind: Literal["zero"] = "zero"


class ModelToken(_Frozen):
    """The embedding row of a token of one model; exactly one of ``token`` and ``token_id``."""

    kind: Literal["model_token"] = "model_token"
    model: ModelRef = Field(description="The model whose row is taken.")
    token: str | None = Field(default=None, description="The token, as text.")
    token_id: int | None = Field(default=None, ge=0, description="The token, as row number.")


class TokenRule(_Frozen):
    """Where the embedding of one token comes from."""

    source: ModelRef | ModelToken | ZeroRow | None = Field(
        default=None, description="A model, {kind: model_token, model, token or token_id}, or {kind: zero}."
    )
    force: bool = Field(default=False, description="Use it even for models that have the token themselves.")


class Tokenizer(_Frozen):
    """How the output vocabulary is made."""

    source: Literal["union", "base"] | ModelRef = Field(
        default="union", description="`union` of all vocabularies, the `base` model's, or the one of a model."
    )
    tokens: dict[str, TokenRule] = Field(default_factory=dict, description="Rules for single tokens.")
    pad_to_multiple_of: int | None = Field(
        default=None, ge=1, description="Round the number of embedding rows up to a multiple of this."
    )


class Recipe(_Frozen):
    """A merge: a method, the models it merges, and every setting. Equal recipes give equal bytes."""

    name: str | None = Field(default=None, min_length=1, description="A name for this recipe.")
    merge_method: str = Field(description="How the models are merged; see `smelt methods`.")
    base_model: ModelRef | Recipe | None = Field(
        default=None, description="The model that deltas are taken from; also donates config and tokenizer."
    )
    models: tuple[Entry, ...] | None = Field(default=None, description="Models merged layer by layer.")
    slices: tuple[Slice, ...] | None = Field(
        default=None, description="Output layers from chosen input layers."
    )
    modules: dict[str, Module] | None = Field(
        default=None, description="One recipe for each part of a model that has several parts."
    )
    parameters: Parameters = Field(default_factory=dict, description="Settings of the whole merge.")
    dtype: str | None = Field(
        default=None,
        description="Type of the output's tensors unless out_dtype is set; arithmetic is float32 or wider.",
    )
    out_dtype: str | None = Field(default=None, description="Type of the output's tensors.")
    seed: int | None = Field(
        default=None, ge=0, lt=2**64, description="Seed of methods that draw random masks."
    )
    tokenizer_source: Literal["union", "base"] | ModelRef | None = Field(
        default=None, description="Short form of `tokenizer: {source: ...}`."
    )
    tokenizer: Tokenizer | None = Field(default=None, description="How the output vocabulary is made.")
    chat_template: str | None = Field(
        default=None,
        description="`auto`, the name of a known template, Jinja text, or the path of a Jinja file.",
    )
    warnings: tuple[InstanceOf[Problem], ...] = Field(default=(), exclude=True, repr=False)

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if sum(form is not None for form in (self.models, self.slices, self.modules)) != 1:
            raise RecipeError("a recipe has exactly one of models, slices and modules")
        return self

    @classmethod
    def build(
        cls,
        merge_method: str,
        models: Sequence[Any] | None = None,
        base_model: Any = None,
        parameters: Mapping[str, Any] | None = None,
        *,
        methods: Mapping[str, MethodSpec],
        **fields: Any,
    ) -> Recipe:
        """A recipe from Python, checked like a file. ``models`` holds models (strings, paths, references,
        recipes), pairs (model, settings) or entries; ``fields`` are further top-level keys such as ``dtype``.
        """
        from smelt.recipe.load import build_recipe

        return build_recipe(merge_method, models, base_model, parameters, methods, fields)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self._canonical() == other._canonical()

    def __hash__(self) -> int:
        return hash(self._canonical())

    def _canonical(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=True)

    @property
    def digest(self) -> str:
        """SHA-256 of what the recipe says; independent of the order of its keys and of how it was spelled."""
        import hashlib  # here, because it costs milliseconds that most commands need not pay

        return hashlib.sha256(self._canonical().encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The canonical JSON-able form, nested recipes inline. Loading it gives an equal recipe."""
        return to_plain(self)

    def to_yaml(self) -> str:
        """The canonical form as YAML."""
        return yaml.safe_dump(
            self.to_dict(), sort_keys=False, allow_unicode=True, default_flow_style=None, width=100
        )

    def nodes(self) -> Iterator[ModelRef | Recipe]:
        """The models and recipes directly in this recipe, in order, base last, repetitions included."""
        parts: tuple[Recipe | Module, ...] = (self, *(self.modules or {}).values())
        for part in parts:
            for entry in part.models or ():
                yield entry.model
            for piece in part.slices or ():
                yield from (source.model for source in piece.sources)
                if piece.base_model is not None:
                    yield piece.base_model
        if self.base_model is not None:
            yield self.base_model

    def refs(self) -> tuple[ModelRef, ...]:
        """All distinct models on disk or on the Hub, nested recipes included, in the order of the recipe."""
        found: dict[ModelRef, None] = {}
        for node in self.nodes():
            found.update(dict.fromkeys((node,) if isinstance(node, ModelRef) else node.refs()))
        return tuple(found)


Node = ModelRef | Recipe


def to_plain(value: Any) -> Any:
    """Recipe data as dicts, lists and scalars; unset fields are left out, settings are sorted by name."""
    if isinstance(value, Setting | ModelRef):
        return value.to_plain()
    if isinstance(value, BaseModel):
        plain = {}
        for name, field in type(value).model_fields.items():
            item = getattr(value, name)
            if field.exclude or item is None or (item == {} and name != "tokenizer"):
                continue
            plain[name] = _sorted(item) if name == "parameters" else to_plain(item)
        return plain
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    return value


def _sorted(parameters: Mapping[str, Setting]) -> dict[str, Any]:
    return {name: parameters[name].to_plain() for name in sorted(parameters)}
