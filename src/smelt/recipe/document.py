"""YAML text in, plain data out, with the line of every value kept for messages. Bounded against alias bombs.

Keys are always the text the user wrote. Plain scalars follow YAML 1.1 as PyYAML does, except where that
surprises: octal (``010``), base sixty (``1:30``) and dates stay text, for whoever reads them to explain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from smelt.core.errors import Problem, RecipeError

MAX_BYTES = 1 << 20
MAX_NODES = 50_000  # after aliases are expanded
MAX_DEPTH = 64

YamlPath = tuple[str | int, ...]

_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_NULLS = {"", "~", "null"}
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)")
_HEX = re.compile(r"[-+]?0x[0-9a-fA-F_]*[0-9a-fA-F]")
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?")
_SPECIAL = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf", ".nan": "nan"}
_KEYWORD_STYLES = (str.lower, str.upper, str.capitalize)
_TAGS = {"str", "int", "float", "bool", "null", "map", "seq"}
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Document:
    """One parsed text: its data, where each value stands, and how plain scalars were spelled."""

    data: Any
    lines: dict[YamlPath, int] = field(default_factory=dict)
    spelled: dict[YamlPath, str] = field(default_factory=dict)
    label: str = ""
    folder: Path | None = None

    def where(self, path: YamlPath) -> str:
        """A path for people: ``models[1].parameters.weight (line 7)``."""
        shown = show_path(path)
        line = next((self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines), None)
        if line is not None:
            shown = f"{shown} (line {line})" if shown else f"line {line}"
        return ": ".join(part for part in (self.label, shown) if part)


def show_path(path: YamlPath) -> str:
    """The usual notation of a path into YAML.

    >>> show_path(("models", 1, "parameters", "weight"))
    'models[1].parameters.weight'
    >>> show_path(("tokens", "<|im_end|>"))
    "tokens['<|im_end|>']"
    """
    shown = ""
    for step in path:
        if not isinstance(step, str):
            shown += f"[{step}]"
        elif _IDENTIFIER.fullmatch(step):
            shown += f".{shorten(step)}" if shown else shorten(step)
        else:
            shown += f"[{shorten(repr(step))}]"
    return shown


def shorten(text: str, limit: int = 60) -> str:
    """Text that fits into a message."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


@dataclass(slots=True)
class _Node:
    """A composed YAML node: ``value`` is text, a list of nodes, or a list of (key text, line, node)."""

    value: Any
    line: int
    tag: str = ""
    plain: bool = False


def parse_yaml(text: str, *, label: str = "", folder: Path | None = None) -> tuple[Document, list[Problem]]:
    """Read one YAML document. Broken syntax raises; duplicate keys come back as problems beside the data."""
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise RecipeError(
            "the recipe is larger than 1 MiB", where=label, fix="recipes hold settings, not data"
        )
    composer = _Composer(label)
    root = composer.compose(text)
    document = Document(None, label=label, folder=folder)
    expander = _Expander(document)
    data = expander.value(root, (), 0) if root is not None else None
    return Document(data, document.lines, document.spelled, label, folder), composer.problems


class _Composer:
    """Events to nodes, with bounds checked while building."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.anchors: dict[str, _Node] = {}
        self.problems: list[Problem] = []
        self.count = 0

    def compose(self, text: str) -> _Node | None:
        """The root node of the only document in ``text``; None when it is empty."""
        try:
            events = iter(yaml.parse(text, Loader=yaml.SafeLoader))
            root = None
            for event in events:
                if isinstance(event, yaml.DocumentStartEvent):
                    if root is not None:
                        advice = "give each recipe its own file, or nest it where its model is used"
                        self.fail("a second YAML document starts here", event, "one recipe per file", advice)
                    root = self.node(next(events), events, 0)
            return root
        except yaml.YAMLError as error:
            raise RecipeError([_syntax_problem(error, self.label)]) from None

    def fail(self, what: str, event: yaml.Event, expected: str = "", fix: str = "") -> None:
        """Give up at an event."""
        raise RecipeError(what, where=self.where(_line(event)), expected=expected, fix=fix)

    def where(self, line: int) -> str:
        """A line of this text, for messages."""
        return f"{self.label}: line {line}" if self.label else f"line {line}"

    def node(self, event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> _Node:
        """One node and all below it."""
        self.count += 1
        if self.count > MAX_NODES:
            self.fail("the recipe has too many values", event, f"at most {MAX_NODES}")
        if depth > MAX_DEPTH:
            self.fail("the recipe is nested too deeply", event, f"at most {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event)
        tag = self.tag(event)
        if isinstance(event, yaml.ScalarEvent):
            node = _Node(event.value, _line(event), tag, plain=event.style is None)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = _Node(self.sequence(events, depth), _line(event), "seq")
        else:
            node = _Node(self.mapping(events, depth), _line(event), "map")
        anchor: str | None = event.anchor  # type: ignore[attr-defined]
        if anchor:
            self.anchors[anchor] = node
        return node

    def alias(self, event: yaml.AliasEvent) -> _Node:
        """The node an alias stands for."""
        name = str(event.anchor)
        if name not in self.anchors:
            self.fail(f"alias *{name} names no finished anchor", event, f"an anchor &{name} above it")
        return self.anchors[name]

    def tag(self, event: yaml.Event) -> str:
        """The short name of a plain YAML tag; any other tag is refused."""
        full: str = event.tag or ""  # type: ignore[attr-defined]
        short = full.removeprefix("tag:yaml.org,2002:")
        if full and full != "!" and short not in _TAGS:
            self.fail(f"the YAML tag {full!r} is not allowed", event, "plain values", "remove the tag")
        return "str" if full == "!" else short

    def sequence(self, events: Iterator[yaml.Event], depth: int) -> list[_Node]:
        """Items up to the end of the sequence."""
        items = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(self.node(event, events, depth + 1))
        return items

    def mapping(self, events: Iterator[yaml.Event], depth: int) -> list[tuple[str, int, _Node]]:
        """Pairs up to the end of the mapping; a repeated key is a problem, its last value is kept."""
        pairs: dict[str, tuple[int, _Node]] = {}
        merged: list[tuple[str, int, _Node]] = []
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            key = self.node(event, events, depth + 1)
            value = self.node(next(events), events, depth + 1)
            if not isinstance(key.value, str):
                self.fail("a key is itself a list or mapping", event, "a word")
            if key.plain and key.value == "<<":
                merged.extend(self.merge_pairs(value, event))
                continue
            if key.value in pairs:
                self.problems.append(
                    Problem(f"key {shorten(repr(key.value))} stands twice", self.where(key.line),
                            fix=f"remove one of them; the first is on line {pairs[key.value][0]}")
                )  # fmt: skip
            pairs[key.value] = (key.line, value)
        own = [(key, line, value) for key, (line, value) in pairs.items()]
        return own + [pair for pair in merged if pair[0] not in pairs]

    def merge_pairs(self, value: _Node, event: yaml.Event) -> list[tuple[str, int, _Node]]:
        """What ``<<: *anchor`` or ``<<: [*a, *b]`` brings in; of two anchors the first wins."""
        sources = value.value if value.tag == "seq" else [value]
        found: dict[str, tuple[str, int, _Node]] = {}
        for source in sources:
            if source.tag != "map":
                self.fail("<< merges something that is not a mapping", event, "<<: *anchor of a mapping")
            for pair in source.value:
                found.setdefault(pair[0], pair)
        return list(found.values())


class _Expander:
    """Nodes to data. Aliases are expanded here, so the bound on size is checked again."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.count = 0

    def value(self, node: _Node, path: YamlPath, line: int) -> Any:
        """The plain value of a node standing at ``path``, whose key is on ``line``."""
        self.count += 1
        if self.count > MAX_NODES:
            raise RecipeError(
                "the recipe's aliases expand to too many values", where=self.document.where(path),
                expected=f"at most {MAX_NODES}",
            )  # fmt: skip
        if len(path) > MAX_DEPTH:
            raise RecipeError("the recipe is nested too deeply", expected=f"at most {MAX_DEPTH} levels")
        self.document.lines[path] = line or node.line
        if node.tag == "map":
            return {key: self.value(child, (*path, key), at) for key, at, child in node.value}
        if node.tag == "seq":
            return [self.value(child, (*path, index), child.line) for index, child in enumerate(node.value)]
        return self.scalar(node, path)

    def scalar(self, node: _Node, path: YamlPath) -> Any:
        """A scalar as data; its spelling is kept when it is not simply that text."""
        if node.tag == "str" or (not node.plain and not node.tag):
            return node.value
        value = read_plain(node.value)
        if not isinstance(value, str):
            self.document.spelled[path] = node.value
        return value


def read_plain(text: str) -> Any:
    """The value of an unquoted scalar.

    >>> [read_plain(text) for text in ("7", "0.5", "off", "~", "010", "1e-5")]
    [7, 0.5, False, None, '010', '1e-5']
    """
    lowered = text.lower()
    if lowered in _BOOLS or lowered in _NULLS or lowered in _SPECIAL:
        if text not in {style(lowered) for style in _KEYWORD_STYLES}:
            return text
        if lowered in _SPECIAL:
            return float(_SPECIAL[lowered])
        return _BOOLS.get(lowered)
    if _INT.fullmatch(text) and len(text) < 100:
        return int(text.replace("_", ""))
    if _HEX.fullmatch(text) and len(text) < 100:
        return int(text.replace("_", ""), 16)
    return float(text.replace("_", "")) if _FLOAT.fullmatch(text) else text


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


_ADVICE = (
    ("'\\t'", "indent with spaces, not with tabs"),
    (
        "mapping values are not allowed",
        "check the indentation of this line, or quote a value that contains ': '",
    ),
    ("could not find expected ':'", "write `key: value`"),
    ("expected <block end>", "check the indentation of this line"),
    ("'<stream end>'", "close the bracket or quote that is open"),
    ("'@'", "quote a value that starts with @"),
    ("'`'", "quote a value that starts with `"),
    ("'%'", "quote a value that starts with %"),
)


def _syntax_problem(error: yaml.YAMLError, label: str) -> Problem:
    """A YAML error as one problem: what the parser met, on which line, and what usually causes it."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    line = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    where = ": ".join(part for part in (label, line) if part)
    fix = next((advice for sign, advice in _ADVICE if sign in what), "")
    return Problem(f"not valid YAML: {what}", where, fix=fix)
