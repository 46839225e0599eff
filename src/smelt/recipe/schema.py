"""JSON Schema (draft 2020-12) of the recipe language, for editors, from the models and the method registry.

Everything a recipe holds whatever its method is described once; for each method an if/then pair adds which
parameters exist at which level, their bounds and words, and whether a base is needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from smelt.core.method import MethodSpec, Param
from smelt.recipe.fields import CHAT_TEMPLATES, DTYPES, MIN_TEMPLATE
from smelt.recipe.model import Entry, ModelToken, Module, Recipe, Slice, Source, Tokenizer, TokenRule
from smelt.recipe.reference import ModelPath, ModelRef

Schema = dict[str, Any]

_NUMERIC_TEXT: Schema = {
    "type": "string",
    "pattern": r"^\s*[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?\s*$",
}
_TEXT: Schema = {"type": ["string", "number"], "minLength": 1}  # a folder or revision may look like a number
_NODE: Schema = {"$ref": "#/$defs/model"}
_PARAMETERS: Schema = {"$ref": "#/$defs/parameters"}


def json_schema(methods: Mapping[str, MethodSpec]) -> Schema:
    """The schema of a recipe whose method is one of ``methods``.

    >>> json_schema({})["$ref"]
    '#/$defs/recipe'
    """
    defs: Schema = {
        "recipe": _recipe(methods),
        "model": _node(),
        "reference": _reference(),
        "path": _path(),
        "entry": _object(Entry, {"model": _NODE, "parameters": _PARAMETERS}, ["model"]),
        "source": _object(
            Source,
            {"model": _NODE, "layer_range": _layer_range(), "parameters": _PARAMETERS},
            ["model", "layer_range"],
        ),
        "slice": _slice(),
        "module": _module(),
        "tokenizer": _tokenizer(),
        "token": _token(),
        "dtype": _dtype(),
        "parameters": {"type": ["object", "null"]},
    }
    for name in sorted(methods):
        spec = methods[name]
        defs |= {_setting_name(param): _setting(param) for param in spec.params}
        defs |= {name: _method(spec), f"{name}.form": _form(spec)}
        defs |= {f"{name}.of_a_model": _of_a_model(spec), f"{name}.parameters": _of_all(spec)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "smelt merge recipe",
        "$ref": "#/$defs/recipe",
        "$defs": defs,
    }


def _object(model: type[BaseModel], properties: Schema, required: list[str]) -> Schema:
    """A closed object whose keys are the fields of a pydantic model; all but the required may be null."""
    described = {}
    for name, field in model.model_fields.items():
        if field.exclude:
            continue
        schema = properties[name]
        optional = name not in required and schema is not _PARAMETERS
        described[name] = {
            "description": field.description or "",
            **(_or_null(schema) if optional else schema),
        }
    schema = {"type": "object", "additionalProperties": False, "properties": described}
    return {**schema, "required": required} if required else schema


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _list_of(name: str) -> Schema:
    return {"type": "array", "minItems": 1, "items": {"$ref": f"#/$defs/{name}"}}


def _one_of(forms: tuple[str, ...]) -> list[Schema]:
    """Exactly one of the keys, with a value other than null."""
    return [{"required": [form], "properties": {form: {"not": {"type": "null"}}}} for form in forms]


def _recipe(methods: Mapping[str, MethodSpec]) -> Schema:
    """The top level."""
    source = {"anyOf": [{"enum": ["union", "base"]}, {"$ref": "#/$defs/reference"}]}
    names = [{"const": name, "description": methods[name].summary} for name in sorted(methods)]
    properties = {
        "name": {"type": "string", "minLength": 1},
        "merge_method": {"oneOf": names} if names else {"type": "string"},
        "base_model": _NODE,
        "models": _list_of("entry"),
        "slices": _list_of("slice"),
        "modules": {"type": "object", "minProperties": 1, "additionalProperties": {"$ref": "#/$defs/module"}},
        "parameters": _PARAMETERS,
        "dtype": {"$ref": "#/$defs/dtype"},
        "out_dtype": {"$ref": "#/$defs/dtype"},
        "seed": {"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
        "tokenizer_source": source,
        "tokenizer": {"$ref": "#/$defs/tokenizer"},
        "chat_template": _chat_template(),
    }
    return {
        **_object(Recipe, properties, ["merge_method"]),
        "oneOf": _one_of(("models", "slices", "modules")),
        "allOf": [
            {
                "if": {"properties": {"merge_method": {"const": name}}, "required": ["merge_method"]},
                "then": {"$ref": f"#/$defs/{name}"},
            }
            for name in sorted(methods)
        ],
    }


def _node() -> Schema:
    return {"anyOf": [{"$ref": "#/$defs/reference"}, {"$ref": "#/$defs/recipe"}]}


def _reference() -> Schema:
    """A model: text, {path, revision} or {model, lora, override_architecture}."""
    path = {"$ref": "#/$defs/path"}
    fields = ModelRef.model_fields
    lora = {**path, "description": fields["lora"].description}
    override = {"type": ["string", "null"], "description": fields["override_architecture"].description}
    long = {
        "type": "object",
        "additionalProperties": False,
        "required": ["model"],
        "properties": {"model": path, "lora": _or_null(lora), "override_architecture": override},
    }
    text = {
        **_TEXT,
        "description": "PATH[@REV][+LORA[@REV]], or the path of a recipe ending in .yml or .yaml.",
    }
    return {"anyOf": [text, _path()["anyOf"][1], long]}


def _path() -> Schema:
    """A path taken literally: text or {path, revision}."""
    return {"anyOf": [_TEXT, _object(ModelPath, {"path": _TEXT, "revision": _TEXT}, ["path"])]}


def _layer_range() -> Schema:
    return {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "integer", "minimum": 0}}


def _slice() -> Schema:
    properties = {
        "sources": _list_of("source"),
        "base_model": _NODE,
        "residual_weight": {"type": "number", "deprecated": True},
        "parameters": _PARAMETERS,
    }
    return _object(Slice, properties, ["sources"])


def _module() -> Schema:
    properties = {"models": _list_of("entry"), "slices": _list_of("slice"), "parameters": _PARAMETERS}
    return {**_object(Module, properties, []), "oneOf": _one_of(("models", "slices"))}


def _tokenizer() -> Schema:
    properties = {
        "source": {"anyOf": [{"enum": ["union", "base"]}, {"$ref": "#/$defs/reference"}]},
        "tokens": {"type": "object", "additionalProperties": {"$ref": "#/$defs/token"}},
        "pad_to_multiple_of": {"type": "integer", "minimum": 1},
    }
    return _object(Tokenizer, properties, [])


def _token() -> Schema:
    """The rule for one token."""
    row = {
        "kind": {"const": "model_token"},
        "model": {"$ref": "#/$defs/reference"},
        "token": {"type": "string"},
        "token_id": {"type": "integer", "minimum": 0},
    }
    model_token = _object(ModelToken, row, ["kind", "model"]) | {"oneOf": _one_of(("token", "token_id"))}
    zero = {
        "type": "object",
        "additionalProperties": False,
        "required": ["kind"],
        "properties": {"kind": {"const": "zero"}},
    }
    source = {"anyOf": [{"$ref": "#/$defs/reference"}, model_token, zero]}
    return _object(TokenRule, {"source": source, "force": {"type": "boolean"}}, [])


def _dtype() -> Schema:
    short = [spelling for others in DTYPES.values() for spelling in others]
    others = [*short, *(spelling.upper() for spelling in short), *(f"torch.{name}" for name in DTYPES)]
    return {"anyOf": [{"enum": list(DTYPES)}, {"enum": others}]}


def _chat_template() -> Schema:
    text = f"Jinja text of at least {MIN_TEMPLATE} characters, or the path of a file."
    known = {"enum": ["auto", *CHAT_TEMPLATES]}
    return {"anyOf": [known, {"type": "string", "minLength": 1, "description": text}]}


def _method(spec: MethodSpec) -> Schema:
    """What choosing a method adds to the recipe and to its modules; and the base, if it needs one."""
    form = {"$ref": f"#/$defs/{spec.name}.form"}
    schema: Schema = {
        "description": spec.summary,
        "allOf": [form],
        "properties": {"modules": {"additionalProperties": form}},
    }
    if spec.base not in ("required", "member"):
        return schema
    in_each_slice = {
        "required": ["slices"],
        "properties": {"slices": {"items": {"required": ["base_model"]}}},
    }
    return {**schema, "anyOf": [{"required": ["base_model"]}, in_each_slice, {"required": ["modules"]}]}


def _form(spec: MethodSpec) -> Schema:
    """Which parameters may stand at which level of a recipe or module."""
    of_a_model = {"properties": {"parameters": {"$ref": f"#/$defs/{spec.name}.of_a_model"}}}
    of_all = {"$ref": f"#/$defs/{spec.name}.parameters"}
    sources: Schema = {"properties": {"sources": {"items": of_a_model}, "parameters": of_all}}
    return {
        "properties": {"models": {"items": of_a_model}, "slices": {"items": sources}, "parameters": of_all}
    }


def _of_a_model(spec: MethodSpec) -> Schema:
    """The ``parameters:`` block of one model."""
    return _block(spec, {param.name: _parameter(param) for param in spec.per_model_params})


def _of_all(spec: MethodSpec) -> Schema:
    """The ``parameters:`` block of a slice, module or recipe: those of a model by reference."""
    here = f"#/$defs/{spec.name}.of_a_model/properties/"
    return _block(
        spec,
        {
            param.name: {"$ref": here + param.name} if param.per_model else _parameter(param)
            for param in spec.params
        },
    )


def _block(spec: MethodSpec, properties: Schema) -> Schema:
    return {
        "description": f"Parameters of {spec.name}. {spec.summary}",
        "type": ["object", "null"],
        "additionalProperties": False,
        "properties": properties,
    }


def _parameter(param: Param) -> Schema:
    """One parameter: what editors show, and the shapes it may have."""
    text = _describe(param)
    schema: Schema = {"description": text, "markdownDescription": f"**{param.name}** {text}"}
    if not param.required:
        schema["default"] = param.default
    return {**schema, "$ref": f"#/$defs/{_setting_name(param)}"}


def _setting_name(param: Param) -> str:
    """Parameters of one kind and range share a definition."""
    return re.sub(r"[^a-z0-9.]+", "_", f"setting {param.expected()}".lower())


def _setting(param: Param) -> Schema:
    """All shapes a parameter of this kind may have."""
    value = _value(param)
    gradient = {"type": "array", "minItems": 1, "items": value}
    condition = {
        "type": "object",
        "additionalProperties": False,
        "required": ["value"],
        "properties": {
            "value": {"anyOf": [value, gradient]},
            "filter": {
                "type": ["string", "null"],
                "minLength": 1,
                "description": "Part of a tensor name, a glob over the whole name, or /a regex/.",
            },
        },
    }
    return {"anyOf": [value, gradient, condition, {"type": "array", "minItems": 1, "items": condition}]}


def _value(param: Param) -> Schema:
    """One plain value."""
    if param.kind == "choice":
        return {"enum": list(param.choices)}
    if param.kind == "bool":
        return {"anyOf": [{"type": "boolean"}, {"enum": [0, 1]}]}
    number: Schema = {"type": "integer" if param.kind == "int" else "number"}
    if param.lo is not None:
        number["minimum"] = param.lo
    if param.hi is not None:
        number["maximum"] = param.hi
    return {"anyOf": [number, _NUMERIC_TEXT]}


def _describe(param: Param) -> str:
    """What hovering over a parameter shows."""
    text = param.doc.rstrip(".")
    text = f"{text[:1].upper()}{text[1:]}: {param.expected()}."
    text += " Required." if param.required else f" Default `{str(param.default).lower()}`."
    text += " May differ by model." if param.per_model else ""
    return text + (f" No effect: {param.no_effect}." if param.no_effect else "")
