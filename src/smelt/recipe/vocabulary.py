"""The words a recipe knows, and what to say about those it does not know."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from smelt.core.method import MethodSpec
from smelt.recipe.cursor import Cursor, nearest

#: where a key of the recipe language stands, for those who put it elsewhere
HOMES = {
    "model": "in the items of `models:` or `sources:`",
    "sources": "in the items of `slices:`",
    "layer_range": "in the items of `sources:`",
    "residual_weight": "in the items of `slices:`",
    "slices": "at the top of a recipe or in a module",
    "modules": "at the top of a recipe",
    "merge_method": "at the top of a recipe",
    "base_model": "at the top of a recipe or in a slice",
    "dtype": "at the top of a recipe",
    "out_dtype": "at the top of a recipe",
    "seed": "at the top of a recipe",
    "tokenizer_source": "at the top of a recipe",
    "tokenizer": "at the top of a recipe",
    "chat_template": "at the top of a recipe",
    "pad_to_multiple_of": "under `tokenizer:`",
    "tokens": "under `tokenizer:`",
    "filter": "beside `value:` in a parameter's list of conditions",
    "value": "beside `filter:` in a parameter's list of conditions",
    "revision": "beside `path:` in the mapping form of a model",
    "lora": "beside `model:` in the mapping form of a model",
}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The parameters a recipe may name: those of its method, and those of all others for advice."""

    spec: MethodSpec | None = None
    methods: Mapping[str, MethodSpec] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Parameter names of the chosen method."""
        return [param.name for param in self.spec.params] if self.spec else []

    def owners(self, name: str) -> str:
        """Methods that have a parameter of that name, as text; empty when none has."""
        found = [method for method, spec in self.methods.items() if spec.param(name) is not None]
        return ", ".join(found[:4]) + (" and others" if len(found) > 4 else "")


NO_WORDS = Vocabulary()


def refuse_unknown_keys(cursor: Cursor, known: Collection[str], words: Vocabulary = NO_WORDS) -> None:
    """An error for each key the recipe language does not have here, with what was probably meant."""
    for key in cursor.raw:
        if key not in known:
            cursor.child(key).error(f"unknown key {key!r}", fix=_key_fix(cursor, str(key), known, words))


def _key_fix(cursor: Cursor, key: str, known: Collection[str], words: Vocabulary) -> str:
    """Advice for an unknown key: a parameter beside its block, a key in the wrong place, a slip."""
    if "parameters" in known and key in words.names:
        return _parameter_beside_its_block(cursor, key)
    if key in ("lora", "revision") and isinstance(cursor.raw.get("model"), str):
        return _part_of_a_reference(cursor, key)
    if key in HOMES:
        return f"it belongs {HOMES[key]}"
    near = nearest(key, list(known))
    if near.startswith("did you mean"):
        return near
    if "parameters" in known and words.names:
        fix = nearest(key, words.names)
        if fix.startswith("did you mean"):
            return f"{fix} It is a parameter and belongs under `parameters:`"
        if words.owners(key):
            return f"it is a parameter of {words.owners(key)}, which this recipe does not use"
    return near


def _parameter_beside_its_block(cursor: Cursor, key: str) -> str:
    """How to write a parameter that stands beside `parameters:` or in its stead."""
    if "parameters" in cursor.raw and cursor.raw["parameters"] is None:
        return f"indent {key!r} so that it stands under `parameters:`"
    value = "..." if isinstance(cursor.raw[key], Mapping | list) else cursor.child(key).shown()
    return f"it is a parameter: write `parameters: {{{key}: {value}}}`"


def _part_of_a_reference(cursor: Cursor, key: str) -> str:
    """How to write a LoRA or a revision that stands beside `model:`."""
    model, part = cursor.raw["model"], cursor.raw[key]
    if key == "revision":
        return f"write `model: {model}@{part}`"
    return f"write `model: {{model: {model}, lora: {part}}}`"


def unknown_parameter_fix(name: str, words: Vocabulary) -> str:
    """Advice for a parameter the method lacks."""
    if name in HOMES:
        return f"it belongs {HOMES[name]}"
    if not words.names:
        return "remove it: this method has no parameters"
    fix = nearest(name, words.names)
    if words.owners(name) and not fix.startswith("did you mean"):
        return f"it is a parameter of {words.owners(name)}; {fix}"
    return fix
