"""Walks raw recipe data and builds the frozen Recipe; every problem is collected, none stops the walk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from smelt.core.method import MethodSpec
from smelt.recipe import check, fields
from smelt.recipe.cursor import Cursor, nearest
from smelt.recipe.model import Entry, Module, Node, Recipe, Slice, Source
from smelt.recipe.model_reader import read_reference, read_text_reference
from smelt.recipe.reference import ModelRef, find_on_disk, is_recipe_name, locate
from smelt.recipe.settings import read_parameters
from smelt.recipe.tokens import check_token_models, read_tokenizer, read_tokenizer_source
from smelt.recipe.vocabulary import Vocabulary, refuse_unknown_keys

MAX_NESTING = 16
MAX_RECIPES = 256

OpenFile = Callable[[Cursor, Path, "Scope"], Cursor | None]


@dataclass(frozen=True, slots=True)
class Scope:
    """What a recipe is read in: the methods there are, and the recipes it stands in."""

    methods: Mapping[str, MethodSpec]
    open_file: OpenFile
    files: tuple[Path, ...] = ()
    depth: int = 0
    opened: list[int] = field(default_factory=lambda: [0])

    def inside(self, file: Path | None = None) -> Scope:
        """The scope of a recipe standing in this one."""
        return replace(self, depth=self.depth + 1, files=(*self.files, file) if file else self.files)


def read_recipe(cursor: Cursor, scope: Scope) -> Recipe | None:
    """A whole recipe, top-level or nested; None after an error."""
    if not fields.read_mapping(cursor, "a mapping with merge_method and models"):
        return None
    before = len(cursor.findings.errors)
    spec = _read_method(cursor, scope)
    words = Vocabulary(spec, scope.methods)
    known = [name for name in Recipe.model_fields if name != "warnings"]
    refuse_unknown_keys(cursor, known, words)
    base = read_node(cursor.child("base_model"), scope) if cursor.has("base_model") else None
    parameters = read_parameters(cursor.child("parameters"), words, "recipe")
    context = check.Context(spec, words, base, (parameters,), has_base=cursor.has("base_model"))
    check.base_model(cursor, context)
    found = {
        "merge_method": spec.name if spec else None,
        "base_model": base,
        "parameters": parameters,
        **_read_form(cursor, scope, context, ("models", "slices", "modules")),
        **_read_plain_fields(cursor),
    }
    if len(cursor.findings.errors) > before:
        return None
    recipe = Recipe(**found)
    if recipe.tokenizer is not None:
        check_token_models(cursor.child("tokenizer"), recipe.tokenizer, recipe.refs())
    check.advise(cursor, context, recipe)
    return recipe


#: methods that recipes from elsewhere may name
ELSEWHERE = frozenset({
    "arcee_fusion", "breadcrumbs", "breadcrumbs_ties", "core_space", "della", "della_linear", "nearswap", "ram",
    "ramplus_tl", "sce",
})  # fmt: skip


def _read_method(cursor: Cursor, scope: Scope) -> MethodSpec | None:
    """The declaration of the recipe's method."""
    if not cursor.has("merge_method"):
        cursor.error("merge_method is missing", "one of " + ", ".join(sorted(scope.methods)))
        return None
    name = fields.read_text(cursor.child("merge_method"), "the name of a merge method")
    if name is None or name in scope.methods:
        return scope.methods[name] if name else None
    if name in ELSEWHERE:
        cursor.child("merge_method").error(
            f"{name} is a method of mergekit that smelt does not have yet", ", ".join(sorted(scope.methods))
        )
    else:
        cursor.child("merge_method").error(
            f"unknown merge method {name!r}", fix=nearest(name, list(scope.methods))
        )
    return None


def _read_form(
    cursor: Cursor, scope: Scope, context: check.Context, forms: tuple[str, ...]
) -> dict[str, Any]:
    """The one of models, slices and modules that is there."""
    present = [form for form in forms if cursor.has(form)]
    listed = ", ".join(forms[:-1]) + f" and {forms[-1]}"
    if not present:
        cursor.error(f"none of {listed} is there", "exactly one of them")
    for extra in present[1:]:
        cursor.child(extra).error(f"{present[0]} and {extra} stand side by side", f"exactly one of {listed}")
    readers = {"models": read_entries, "slices": read_slices, "modules": read_modules}
    return {form: readers[form](cursor.child(form), scope, context) for form in present}


def _read_plain_fields(cursor: Cursor) -> dict[str, Any]:
    """Top-level fields that depend on nothing else."""
    readers: dict[str, Callable[[Cursor], Any]] = {
        "name": lambda at: fields.read_text(at, "a name"),
        "dtype": fields.read_dtype,
        "out_dtype": fields.read_dtype,
        "seed": lambda at: fields.read_whole(at, 0, 2**64 - 1),
        "tokenizer_source": read_tokenizer_source,
        "tokenizer": read_tokenizer,
        "chat_template": fields.read_chat_template,
    }
    if cursor.has("tokenizer") and cursor.has("tokenizer_source"):
        cursor.child("tokenizer_source").error(
            "tokenizer and tokenizer_source stand side by side", fix="keep `tokenizer:` and give it `source:`"
        )
    return {name: read(cursor.child(name)) for name, read in readers.items() if cursor.has(name)}


def read_entries(cursor: Cursor, scope: Scope, context: check.Context) -> tuple[Entry, ...]:
    """``models:``."""
    items = fields.read_items(cursor, "{model, parameters}")
    entries = [_read_entry(item, scope, context) for item in items]
    found = [entry for entry in entries if entry is not None]
    if items:
        found = check.models(cursor, context, found, complete=len(found) == len(items))
    return tuple(found)


def _read_entry(cursor: Cursor, scope: Scope, context: check.Context) -> Entry | None:
    """One of ``models:``."""
    if isinstance(cursor.raw, Entry):
        settings = replace(cursor, raw=cursor.raw.parameters, path=(*cursor.path, "parameters"))
        return Entry(model=cursor.raw.model, parameters=read_parameters(settings, context.words, "model"))
    if isinstance(cursor.raw, str):
        cursor.error(f"the item is {cursor.shown()}", "{model, parameters}", f"write `- model: {cursor.raw}`")
        return None
    if not fields.read_mapping(cursor, "{model, parameters}"):
        return None
    refuse_unknown_keys(cursor, Entry.model_fields, context.words)
    parameters = read_parameters(cursor.child("parameters"), context.words, "model")
    node = _read_member(cursor, scope)
    return Entry(model=node, parameters=parameters) if node is not None else None


def _read_member(cursor: Cursor, scope: Scope) -> Node | None:
    """The ``model:`` of an entry or source."""
    if not cursor.has("model"):
        cursor.error("model is missing", "a folder, a Hub name or a recipe")
        return None
    return read_node(cursor.child("model"), scope)


def read_slices(cursor: Cursor, scope: Scope, context: check.Context) -> tuple[Slice, ...]:
    """``slices:``."""
    items = fields.read_items(cursor, "{sources}")
    found = [_read_slice(item, scope, context) for item in items]
    return tuple(piece for piece in found if piece is not None)


def _read_slice(cursor: Cursor, scope: Scope, context: check.Context) -> Slice | None:
    """One of ``slices:``."""
    if not fields.read_mapping(cursor, "{sources}"):
        return None
    refuse_unknown_keys(cursor, Slice.model_fields, context.words)
    base = read_node(cursor.child("base_model"), scope) if cursor.has("base_model") else None
    parameters = read_parameters(cursor.child("parameters"), context.words, "slice")
    context = context.inside(parameters, base, cursor.has("base_model"))
    weight = _read_residual_weight(cursor.child("residual_weight")) if cursor.has("residual_weight") else None
    if not cursor.has("sources"):
        cursor.error("sources is missing", "a list of {model, layer_range}")
        return None
    items = fields.read_items(cursor.child("sources"), "{model, layer_range}")
    sources = [_read_source(item, scope, context) for item in items]
    found = [source for source in sources if source is not None]
    if items:
        found = check.sources(cursor.child("sources"), context, found, complete=len(found) == len(items))
    if not found:
        return None
    return Slice(sources=tuple(found), base_model=base, residual_weight=weight, parameters=parameters)


def _read_residual_weight(cursor: Cursor) -> float | None:
    if isinstance(cursor.raw, bool) or not isinstance(cursor.raw, int | float):
        cursor.error(f"residual_weight is {cursor.shown()}", "a number")
        return None
    cursor.warn("residual_weight has no effect, here as in mergekit", fix="remove it")
    return float(cursor.raw)


def _read_source(cursor: Cursor, scope: Scope, context: check.Context) -> Source | None:
    """One of ``sources:``."""
    if not fields.read_mapping(cursor, "{model, layer_range, parameters}"):
        return None
    refuse_unknown_keys(cursor, Source.model_fields, context.words)
    parameters = read_parameters(cursor.child("parameters"), context.words, "model")
    node = _read_member(cursor, scope)
    layers = _read_layer_range(cursor)
    return (
        Source(model=node, layer_range=layers, parameters=parameters) if node is not None and layers else None
    )


def _read_layer_range(cursor: Cursor) -> tuple[int, int] | None:
    """``layer_range: [start, end]`` with 0 <= start < end."""
    expected = "[start, end] with 0 <= start < end; end itself is not included"
    if not cursor.has("layer_range"):
        cursor.error("layer_range is missing", expected)
        return None
    at = cursor.child("layer_range")
    if not isinstance(at.raw, list | tuple) or len(at.raw) != 2:
        at.error(f"layer_range is {at.shown()}", expected)
        return None
    start, end = (fields.read_whole(item, 0) for item in at.items())
    if start is None or end is None:
        return None
    if start >= end:
        at.error(f"layer_range [{start}, {end}] holds no layer", expected)
        return None
    return start, end


def read_modules(cursor: Cursor, scope: Scope, context: check.Context) -> dict[str, Module]:
    """``modules:``."""
    if not fields.read_mapping(cursor, "a mapping of module names to {models or slices}"):
        return {}
    if not cursor.raw:
        cursor.error("modules is empty", "a mapping of module names to {models or slices}")
    found = {name: _read_module(cursor.child(name), scope, context) for name in cursor.raw}
    return {str(name): module for name, module in found.items() if module is not None}


def _read_module(cursor: Cursor, scope: Scope, context: check.Context) -> Module | None:
    """One of ``modules:``."""
    if not fields.read_mapping(cursor, "{models or slices, parameters}"):
        return None
    refuse_unknown_keys(cursor, Module.model_fields, context.words)
    parameters = read_parameters(cursor.child("parameters"), context.words, "module")
    return Module(
        parameters=parameters, **_read_form(cursor, scope, context.inside(parameters), ("models", "slices"))
    )


def read_node(cursor: Cursor, scope: Scope) -> Node | None:
    """A model, or a recipe that stands for one."""
    raw = cursor.raw
    if isinstance(raw, ModelRef | Recipe):
        return raw
    if isinstance(raw, Path):
        return ModelRef(path=locate(str(raw), cursor.document.folder))
    if isinstance(raw, Mapping):
        if any(key in raw for key in ("merge_method", "models", "slices", "modules")):
            return _read_nested(cursor, scope.inside())
        return read_reference(cursor)
    text = fields.read_text(cursor, "a folder, a Hub name or a recipe")
    if text is not None and is_recipe_name(text):
        return _read_recipe_file(cursor, text, scope)
    return None if text is None else read_text_reference(cursor, text)


def _read_nested(cursor: Cursor, scope: Scope) -> Recipe | None:
    """A recipe inside a recipe, within the bounds."""
    scope.opened[0] += 1
    if scope.depth > MAX_NESTING:
        cursor.error("recipes are nested too deeply", f"at most {MAX_NESTING} levels")
        return None
    if scope.opened[0] > MAX_RECIPES:
        if scope.opened[0] == MAX_RECIPES + 1:
            cursor.error("too many nested recipes", f"at most {MAX_RECIPES}")
        return None
    return read_recipe(cursor, scope)


def _read_recipe_file(cursor: Cursor, text: str, scope: Scope) -> Recipe | None:
    """A recipe by path, relative to the file that names it, else to the working directory."""
    file = find_on_disk(text, cursor.document.folder, folder_first=True)
    if file is None:
        cursor.error(
            f"no recipe file {text!r}", fix="check the path; it is relative to the file that names it"
        )
        return None
    resolved = file.resolve()
    if resolved in scope.files:
        chain = [*scope.files[scope.files.index(resolved) :], resolved]
        cursor.error("recipes name each other in a circle: " + " -> ".join(link.name for link in chain))
        return None
    opened = scope.open_file(cursor, file, scope)
    return None if opened is None else _read_nested(opened, scope.inside(resolved))
