"""Readers of single fields that mean the same wherever they stand: text, numbers, dtypes, templates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from smelt.recipe.cursor import Cursor, nearest
from smelt.recipe.reference import locate
from smelt.recipe.setting import read_number

DTYPES: dict[str, tuple[str, ...]] = {
    "bfloat16": ("bf16",),
    "float16": ("fp16", "f16", "half"),
    "float32": ("fp32", "f32", "float", "single"),
    "float64": ("fp64", "f64", "double"),
}
CHAT_TEMPLATES = ("alpaca", "chatml", "exaone", "llama3", "mistral")
MIN_TEMPLATE = 20  # characters; shorter text with a brace in it is more likely a slip

_SPELLINGS = {spelling: name for name, others in DTYPES.items() for spelling in (name, *others)}


def read_mapping(cursor: Cursor, what: str) -> bool:
    """Whether the value is a mapping; else an error naming what was expected."""
    if isinstance(cursor.raw, Mapping):
        return True
    cursor.error(f"{cursor.key or 'the recipe'} is {cursor.shown()}", what)
    return False


def read_items(cursor: Cursor, what: str) -> list[Cursor]:
    """The items of a list that must not be empty; after an error, none."""
    if isinstance(cursor.raw, list | tuple):
        if not cursor.raw:
            cursor.error(f"{cursor.key} is empty", f"a list of {what}")
        return list(cursor.items())
    fix = "put a dash in front of each item" if isinstance(cursor.raw, Mapping) else ""
    cursor.error(f"{cursor.key} is {cursor.shown()}", f"a list of {what}", fix)
    return []


def read_text(cursor: Cursor, what: str) -> str | None:
    """Text that is not empty. Numbers count as they were spelled; `on`, `no` and the like must be quoted."""
    raw = cursor.raw
    if isinstance(raw, str) and raw.strip():
        return raw
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        return cursor.spelled or str(raw)
    fix = f"quote it: '{cursor.spelled}'" if isinstance(raw, bool) and cursor.spelled else ""
    cursor.error(f"{cursor.key} is {cursor.shown()}", what, fix)
    return None


def read_whole(cursor: Cursor, low: int, high: int | None = None) -> int | None:
    """A whole number from ``low`` to ``high``; numeric text counts."""
    raw: Any = cursor.raw
    advice = ""
    if isinstance(raw, str):
        raw, advice = read_number(raw)
    whole = isinstance(raw, int | float) and not isinstance(raw, bool) and raw == raw // 1
    if whole and raw >= low and (high is None or raw <= high):
        return int(raw)
    bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
    cursor.error(f"{cursor.key} is {cursor.shown()}", f"a whole number {bounds}", advice)
    return None


def read_flag(cursor: Cursor) -> bool | None:
    """true or false."""
    if isinstance(cursor.raw, bool):
        return cursor.raw
    cursor.error(f"{cursor.key} is {cursor.shown()}", "true or false")
    return None


def read_dtype(cursor: Cursor) -> str | None:
    """A dtype under its canonical name; `torch.` in front and short spellings are understood."""
    text = cursor.raw
    name = _SPELLINGS.get(text.lower().removeprefix("torch.")) if isinstance(text, str) else None
    if name is None:
        fix = nearest(text.lower().removeprefix("torch."), list(_SPELLINGS)) if isinstance(text, str) else ""
        fix = fix if fix.startswith("did you mean") else ""
        cursor.error(f"unknown dtype {cursor.shown()}", "one of " + ", ".join(DTYPES), fix)
    return name


def read_chat_template(cursor: Cursor) -> str | None:
    """`auto`, the name of a known template, Jinja text, or the path of a file that holds some."""
    text = read_text(cursor, "auto, a template's name, Jinja text or a file")
    if text is None or text == "auto" or text in CHAT_TEMPLATES:
        return text
    if "{" in text and len(text) >= MIN_TEMPLATE:
        return text
    folder = cursor.document.folder
    path = locate(text, folder)
    if path != text or _is_file(text):
        return path
    if "{" in text:
        cursor.error(
            f"chat_template {cursor.shown()} is too short to be a template",
            f"at least {MIN_TEMPLATE} characters",
        )
    else:
        known = ["auto", *CHAT_TEMPLATES]
        near = nearest(re.sub(r"[^a-z0-9]", "", text.lower()), known)
        cursor.error(
            f"chat_template {cursor.shown()} is no template and no file",
            "auto, a name, Jinja text or a file",
            near,
        )
    return None


def _is_file(text: str) -> bool:
    from pathlib import Path

    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False
