"""Reads model references where they stand in a recipe, string or mapping, and reports what is wrong."""

from __future__ import annotations

from collections.abc import Mapping

from smelt.recipe import fields
from smelt.recipe.cursor import Cursor
from smelt.recipe.reference import (
    ModelPath,
    ModelRef,
    ReferenceProblem,
    find_on_disk,
    locate,
    parse_reference,
)
from smelt.recipe.vocabulary import refuse_unknown_keys


def read_plain_reference(cursor: Cursor) -> ModelRef | None:
    """A model that cannot be a recipe: string or mapping form."""
    if isinstance(cursor.raw, ModelRef):
        return cursor.raw
    if isinstance(cursor.raw, Mapping):
        return read_reference(cursor)
    text = fields.read_text(cursor, "a model")
    return None if text is None else read_text_reference(cursor, text)


def read_text_reference(cursor: Cursor, text: str) -> ModelRef | None:
    """The string form."""
    try:
        ref = parse_reference(text, cursor.document.folder)
    except ReferenceProblem as problem:
        cursor.error(problem.what, problem.expected, problem.fix)
        return None
    _warn_about_revision(cursor, ref)
    return ref


def read_reference(cursor: Cursor) -> ModelRef | None:
    """The mapping form: {model, lora, override_architecture} or {path, revision}. Its paths are literal."""
    if "path" in cursor.raw:
        found = _read_path(cursor)
        ref = ModelRef(path=found.path, revision=found.revision) if found else None
        if ref is not None:
            _warn_about_revision(cursor, ref)
        return ref
    before = len(cursor.findings.errors)
    refuse_unknown_keys(cursor, ("model", "lora", "override_architecture"))
    if not cursor.has("model"):
        cursor.error("model is missing", "{model: PATH, lora: PATH} or {path: PATH, revision: REV}")
    model, lora = (_read_path(cursor.child(key)) if cursor.has(key) else None for key in ("model", "lora"))
    architecture = None
    if cursor.has("override_architecture"):
        architecture = fields.read_text(cursor.child("override_architecture"), "the name of an architecture")
    if model is None or len(cursor.findings.errors) > before:
        return None
    ref = ModelRef(path=model.path, revision=model.revision, lora=lora, override_architecture=architecture)
    _warn_about_revision(cursor, ref)
    return ref


def _warn_about_revision(cursor: Cursor, ref: ModelRef) -> None:
    """A folder on disk has no revisions."""
    for part in (ModelPath(path=ref.path, revision=ref.revision), ref.lora):
        if part is not None and part.revision is not None and find_on_disk(part.path, None) is not None:
            cursor.warn(f"revision {part.revision!r} has no effect: {part.path!r} is a folder on disk")


def _read_path(cursor: Cursor) -> ModelPath | None:
    """A literal path, or {path, revision}."""
    folder = cursor.document.folder
    if isinstance(cursor.raw, ModelPath):
        return cursor.raw
    if not isinstance(cursor.raw, Mapping):
        path = fields.read_text(cursor, "a path, or {path, revision}")
        return None if path is None else ModelPath(path=locate(path, folder))
    before = len(cursor.findings.errors)
    refuse_unknown_keys(cursor, ("path", "revision"))
    if not cursor.has("path"):
        cursor.error("path is missing", "{path, revision}")
        return None
    path = fields.read_text(cursor.child("path"), "a path")
    revision = fields.read_text(cursor.child("revision"), "a revision") if cursor.has("revision") else None
    if path is None or len(cursor.findings.errors) > before:
        return None
    return ModelPath(path=locate(path, folder), revision=revision)
