"""One parameter's setting: a value, a gradient over the layers, or a list of values by tensor name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any

Scalar = float | int | bool | str

LARGEST = 1e300  # what is larger is a slip; it also keeps interpolation finite

_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_OCTAL = re.compile(r"[-+]?(?:0[0-9]+|0o[0-7]+)")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9]+(?::[0-9]+)+")
_DECIMAL_COMMA = re.compile(r"[-+]?[0-9]+,[0-9]+")
_PERCENT = re.compile(r"([-+]?[0-9.]+) ?%")
_FRACTION = re.compile(r"([0-9]+) ?/ ?([1-9][0-9]*)")


@dataclass(frozen=True, slots=True)
class Rule:
    """Values (one, or a gradient) for the tensors whose name passes the filter; None lets every name pass."""

    values: tuple[Scalar, ...]
    filter: str | None = None

    def to_plain(self) -> Any:
        """The values as YAML would hold them."""
        return self.values[0] if len(self.values) == 1 else list(self.values)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a recipe says about one parameter. The first rule whose filter passes decides.

    >>> Setting.of([0, 1]).evaluate("model.layers.1.mlp.up_proj.weight", t=0.25)
    0.25
    >>> Setting.of([{"filter": "mlp", "value": 0.2}, {"value": 0.9}]).evaluate("lm_head.weight", t=0)
    0.9
    """

    rules: tuple[Rule, ...]

    @classmethod
    def of(cls, value: object) -> Setting:
        """A setting from the shapes a recipe may hold; raises RecipeError when it has none of them."""
        from smelt.recipe.settings import setting_of

        return setting_of(value)

    def evaluate(self, name: str, t: float) -> Scalar | None:
        """The value for a tensor at position ``t`` in [0, 1] of its slice; None when no filter passes."""
        for rule in self.rules:
            if rule.filter is None or passes(rule.filter)(name):
                return at_position(rule.values, t)
        return None

    @property
    def constant(self) -> Scalar | None:
        """The value when it is the same for every tensor, else None."""
        if len(self.rules) == 1 and self.rules[0].filter is None and len(self.rules[0].values) == 1:
            return self.rules[0].values[0]
        return None

    @property
    def values(self) -> tuple[Scalar, ...]:
        """Every value that stands in the setting."""
        return tuple(value for rule in self.rules for value in rule.values)

    def to_plain(self) -> Any:
        """The shortest YAML form."""
        if len(self.rules) == 1 and self.rules[0].filter is None:
            return self.rules[0].to_plain()
        return [
            {"value": rule.to_plain()}
            if rule.filter is None
            else {"filter": rule.filter, "value": rule.to_plain()}
            for rule in self.rules
        ]


def at_position(values: tuple[Scalar, ...], t: float) -> Scalar:
    """Linear interpolation between anchors spread evenly over [0, 1]. Booleans and words step, never blend.

    With n anchors g: s = t (n - 1), i = trunc(s), j = min(n - 1, i + 1), f = s - i; (1 - f) g[i] + f g[j].

    >>> at_position((0.0, 1.0, 0.0), 0.75)
    0.5
    >>> at_position((False, True), 0.75)
    False
    """
    if len(values) == 1:
        return values[0]
    last = len(values) - 1
    s = min(max(t, 0.0), 1.0) * last
    low = int(s)
    high = min(last, low + 1)
    below, above = values[low], values[high]
    if any(isinstance(value, bool | str) for value in values):
        return below
    return (1 - (s - low)) * below + (s - low) * above  # type: ignore[operator]


@lru_cache(maxsize=4096)
def passes(pattern: str) -> Callable[[str], bool]:
    """The test a filter stands for: ``/regex/`` is searched, ``*`` and ``?`` make a glob over the whole name,
    anything else is a plain substring.

    >>> passes("mlp")("model.layers.0.mlp.up_proj.weight")
    True
    >>> passes("*.layers.?.mlp.*")("model.layers.10.mlp.up_proj.weight")
    False
    >>> bool(passes("/layers.(1|3)[.]/")("model.layers.3.mlp.up_proj.weight"))
    True
    """
    if is_regex(pattern):
        search = re.compile(pattern[1:-1]).search
        return lambda name: search(name) is not None
    if "*" in pattern or "?" in pattern:
        return lambda name: fnmatchcase(name, pattern)
    return lambda name: pattern in name


def is_regex(pattern: str) -> bool:
    """Whether a filter is written ``/like this/``."""
    return len(pattern) > 2 and pattern.startswith("/") and pattern.endswith("/")


def read_number(text: str) -> tuple[float | int | None, str]:
    """A number written as text, or None with advice.

    >>> read_number("1e-5"), read_number("50%"), read_number("010")[0]
    ((1e-05, ''), (None, 'write 0.5'), None)
    """
    text = text.strip()
    if _OCTAL.fullmatch(text):
        plain = int(text.lower().replace("o", ""), 10)
        octal = int(text.lower().replace("o", ""), 8) if not set("89") & set(text) else None
        choice = f"{plain} or {octal}" if octal is not None else str(plain)
        return None, f"write {choice}: YAML versions disagree on what a leading zero means"
    if _NUMBER.fullmatch(text) and abs(float(text)) <= LARGEST:
        return (int(text) if text.lstrip("+-").isdigit() else float(text)), ""
    return None, _number_advice(text)


def _number_advice(text: str) -> str:
    """What the user may have meant by something that is nearly a number."""
    if _SEXAGESIMAL.fullmatch(text):
        return "write it as one number: some YAML versions read a:b as base sixty"
    if _DECIMAL_COMMA.fullmatch(text):
        return f"write {text.replace(',', '.')}"
    if (match := _PERCENT.fullmatch(text)) and _NUMBER.fullmatch(match[1]):
        return f"write {float(match[1]) / 100:g}"
    if match := _FRACTION.fullmatch(text):
        return f"write {int(match[1]) / int(match[2]):.6g}"
    return ""
