"""Model references: ``PATH[@REV][+LORA[@REV]]``, and the mapping form whose paths are taken literally."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

_LOCAL = re.compile(r"[/~]|\.\.?(?:[/\\]|$)|[A-Za-z]:[/\\]|\\\\")


class ModelPath(BaseModel):
    """A folder or a hub name, and which revision of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    path: str = Field(min_length=1, description="A folder on disk or a name on the Hub, taken literally.")
    revision: str | None = Field(default=None, description="Branch, tag or commit on the Hub.")

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path


class ModelRef(BaseModel):
    """A model on disk or on the Hub, perhaps with a LoRA on top.

    >>> print(ModelRef.parse("org/base@main+org/adapter"))
    org/base@main+org/adapter
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    path: str = Field(min_length=1, description="A folder on disk or a name on the Hub.")
    revision: str | None = Field(default=None, description="Branch, tag or commit on the Hub.")
    lora: ModelPath | None = Field(default=None, description="A LoRA adapter to apply to the model.")
    override_architecture: str | None = Field(
        default=None, description="Use this instead of the architecture named in the model's config.json."
    )

    @classmethod
    def parse(cls, text: str, folder: Path | None = None) -> ModelRef:
        """Read the string form. Raises ReferenceProblem."""
        return parse_reference(text, folder)

    def __str__(self) -> str:
        text = str(ModelPath(path=self.path, revision=self.revision))
        return f"{text}+{self.lora}" if self.lora else text

    @property
    def ambiguous(self) -> bool:
        """Whether the string form would not read back as the same reference."""
        parts = [self.path, self.revision]
        if self.lora:
            parts += [self.lora.path, self.lora.revision]
        special = any(part is not None and re.search(r"[+@\n]|^\s|\s$", part) for part in parts)
        return special or self.override_architecture is not None or is_recipe_name(str(self))

    def to_plain(self) -> str | dict[str, Any]:
        """The string form, or the mapping form where the string would be ambiguous."""
        if not self.ambiguous:
            return str(self)
        plain: dict[str, Any] = {"model": _plain_path(self.path, self.revision)}
        if self.lora:
            plain["lora"] = _plain_path(self.lora.path, self.lora.revision)
        if self.override_architecture:
            plain["override_architecture"] = self.override_architecture
        return plain


def _plain_path(path: str, revision: str | None) -> dict[str, str]:
    return {"path": path, "revision": revision} if revision else {"path": path}


def is_recipe_name(text: str) -> bool:
    """Whether a model reference means another recipe file."""
    return text.lower().endswith((".yml", ".yaml"))


class ReferenceProblem(ValueError):
    """Why a string is not a model reference."""

    def __init__(self, what: str, expected: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.expected, self.fix = what, expected, fix


def parse_reference(text: str, folder: Path | None = None) -> ModelRef:
    """``PATH[@REV][+LORA[@REV]]``. What exists on disk under its whole name is a path, whatever is in it."""

    def exists(path: str) -> bool:
        return find_on_disk(path, folder) is not None

    model, lora = _split_lora(text, exists)
    path, revision = _split_revision(model, exists)
    if not lora:
        return ModelRef(path=locate(path, folder), revision=revision)
    lora_path, lora_revision = _split_revision(lora, exists)
    adapter = ModelPath(path=locate(lora_path, folder), revision=lora_revision)
    return ModelRef(path=locate(path, folder), revision=revision, lora=adapter)


def find_on_disk(path: str, folder: Path | None, *, folder_first: bool = False) -> Path | None:
    """The path as it is, below the recipe's folder, or below the home folder; None when nothing is there."""
    try:
        candidates = [Path(path)]
        if folder is not None:
            candidates.insert(0 if folder_first else 1, folder / path)
        if path.startswith("~"):
            candidates.append(Path(path).expanduser())
        return next((candidate for candidate in candidates if candidate.exists()), None)
    except (OSError, ValueError, RuntimeError):
        return None


def locate(path: str, folder: Path | None) -> str:
    """A path that opens from the working directory; unchanged when nothing is there (a hub name)."""
    found = find_on_disk(path, folder)
    return path if found is None else str(found)


def _split_lora(text: str, exists: Callable[[str], bool]) -> tuple[str, str]:
    """The text before and after the `+` that starts the LoRA."""
    pluses = [index for index, letter in enumerate(text) if letter == "+"]
    if not pluses or exists(text):
        return text, ""

    def known(index: int) -> tuple[bool, bool, int]:
        left = exists(_split_revision(text[:index], exists)[0])
        return left and exists(text[index + 1 :]), left, index

    best = max(pluses, key=known)
    if not known(best)[1]:
        right = [index for index in pluses if exists(text[index + 1 :])]
        if len(pluses) > 1 and len(right) != 1:
            raise ReferenceProblem(
                f"{text!r} has more than one '+'", "PATH[@REV][+LORA[@REV]]",
                "write it as a mapping: {model: {path: ...}, lora: {path: ...}}",
            )  # fmt: skip
        best = right[0] if right else pluses[0]
    model, lora = text[:best], text[best + 1 :]
    if not model or not lora:
        raise ReferenceProblem(
            f"{text!r} has nothing {'before' if not model else 'after'} the '+'", "PATH+LORA"
        )
    return model, lora


def _split_revision(part: str, exists: Callable[[str], bool]) -> tuple[str, str | None]:
    """The path and the revision after its `@`."""
    ats = [index for index, letter in enumerate(part) if letter == "@"]
    if not ats or exists(part):
        return part, None
    known = [index for index in ats if exists(part[:index])]
    if not known and _LOCAL.match(part):
        return part, None
    if not known and len(ats) > 1:
        raise ReferenceProblem(
            f"{part!r} has more than one '@'",
            "PATH@REVISION",
            "write it as a mapping: {model: {path: ..., revision: ...}}",
        )
    split = known[-1] if known else ats[0]
    path, revision = part[:split], part[split + 1 :]
    if not path or not revision:
        raise ReferenceProblem(
            f"{part!r} has nothing {'before' if not path else 'after'} the '@'", "PATH@REVISION"
        )
    return path, revision
