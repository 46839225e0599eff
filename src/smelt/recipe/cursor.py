"""A value inside a recipe, together with where it stands and where its problems are collected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from smelt.core.errors import Problem, did_you_mean
from smelt.recipe.document import Document, YamlPath, shorten


@dataclass(slots=True)
class Findings:
    """Everything that is wrong (errors) or odd (warnings), in the order it was met."""

    errors: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    places: set[tuple[int, YamlPath]] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Cursor:
    """Points at one raw value of one document."""

    raw: Any
    document: Document
    findings: Findings
    path: YamlPath = ()

    def child(self, key: str | int) -> Cursor:
        """The value below; None when a mapping lacks the key."""
        raw = self.raw.get(key) if isinstance(self.raw, Mapping) else self.raw[key]
        return Cursor(raw, self.document, self.findings, (*self.path, key))

    def items(self) -> Iterator[Cursor]:
        """The items of a list."""
        return (self.child(index) for index in range(len(self.raw)))

    def has(self, key: str) -> bool:
        """Whether a mapping holds the key with a value other than null."""
        return isinstance(self.raw, Mapping) and self.raw.get(key) is not None

    @property
    def key(self) -> str:
        """The name of the value: the last step of the path that is a word."""
        return next((step for step in reversed(self.path) if isinstance(step, str)), "")

    @property
    def spelled(self) -> str | None:
        """How a plain scalar that is not text was written."""
        return self.document.spelled.get(self.path)

    def shown(self) -> str:
        """The value for messages, as the user wrote it, shortened."""
        text = self.spelled or describe(self.raw)
        return shorten(text)

    @property
    def where(self) -> str:
        """The path of this value, with its line."""
        return self.document.where(self.path)

    def error(self, what: str, expected: str = "", fix: str = "") -> None:
        """Collect an error at this place."""
        self.findings.errors.append(Problem(shorten(what, 400), self.where, expected, shorten(fix, 600)))
        self.findings.places.update((id(self.document), self.path[:n]) for n in range(len(self.path) + 1))

    @property
    def failed(self) -> bool:
        """Whether an error stands here or below."""
        return (id(self.document), self.path) in self.findings.places

    def warn(self, what: str, expected: str = "", fix: str = "") -> None:
        """Collect a warning at this place."""
        self.findings.warnings.append(Problem(shorten(what, 400), self.where, expected, fix))


def nearest(word: str, known: Sequence[str]) -> str:
    """Like did_you_mean; also finds a known word that starts with the given one, or the other way round.

    >>> nearest("base", ["base_model", "models"])
    "did you mean 'base_model'?"
    """
    advice = did_you_mean(word, known)
    if advice.startswith("did you mean") or len(word) < 3:
        return advice
    near = [name for name in known if name.startswith(word) or word.startswith(name)]
    return f"did you mean {near[0]!r}?" if len(near) == 1 else advice


def describe(raw: object) -> str:
    """A raw value in words short enough for a message.

    >>> describe({"value": 1}), describe([1, 2]), describe("x"), describe(None), describe(True)
    ('a mapping', 'a list of 2', "'x'", 'nothing', 'true')
    """
    if raw is None:
        return "nothing"
    if isinstance(raw, bool):
        return str(raw).lower()
    if isinstance(raw, Mapping):
        return "a mapping"
    if isinstance(raw, list | tuple):
        return f"a list of {len(raw)}"
    if isinstance(raw, int) and raw.bit_length() > 256:
        return "a huge number"
    return repr(raw)
