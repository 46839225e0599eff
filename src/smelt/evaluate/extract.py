"""Exact answers in free text: a letter five times, ``\\boxed{}``, or bold; and what counts as equal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from smelt.evaluate.responses import Response

FIVE_LETTERS = re.compile(r"(?<![A-Za-z])([A-Z])\1{4}(?![A-Za-z])")
BOLD = re.compile(r"\*\*([^*\n]+?)\*\*")
FRACTION = re.compile(r"\\[dt]?frac\{([^{}]+)\}\{([^{}]+)\}")
WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox)\{([^{}]*)\}")


def extract_answer(text: str) -> str | None:
    r"""The last exact answer stated: a letter five times, else ``\boxed{}``, else bold text, else None.

    >>> [extract_answer(text) for text in ("It is C. CCCCC", r"so \boxed{x^{2}}", "**yes, no**")]
    ['C', 'x^{2}', 'yes, no']
    """
    for find in (last_letter, last_boxed, last_bold):
        answer = find(text)
        if answer is not None:
            return answer
    return None


def last_letter(text: str) -> str | None:
    """The last capital letter written exactly five times in a row."""
    found = FIVE_LETTERS.findall(text)
    return found[-1] if found else None


def last_boxed(text: str) -> str | None:
    r"""What the last ``\boxed{...}`` holds; braces may nest.

    >>> last_boxed(r"\boxed{x^{2}}")
    'x^{2}'
    """
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start < 0:
        return None
    begin = text.index("{", start) + 1
    depth = 1
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin:place].strip() or None
    return None


def last_bold(text: str) -> str | None:
    """The last ``**bold**`` text that is not a heading ending in a colon."""
    found = [part.strip() for part in BOLD.findall(text)]
    found = [part for part in found if part and not part.endswith(":")]
    return found[-1] if found else None


def normal_form(answer: str) -> str:
    r"""An answer without notation: case, white space, dollar signs, ``\text{}``, a full stop, fractions.

    >>> normal_form(r"$\dfrac{3}{6}$") == normal_form("0.5") == normal_form("1/2")
    True
    """
    text = answer.strip().strip("$").strip()
    text = FRACTION.sub(r"(\1)/(\2)", WRAPPED.sub(r"\1", text))
    for spacing in ("\\!", "\\,", "\\;", "\\ ", "\\left", "\\right", "{,}"):
        text = text.replace(spacing, "")
    text = re.sub(r"\s*,\s*", ",", " ".join(text.split())).rstrip(".").casefold()
    return _number(text) or text


def _number(text: str) -> str | None:
    bare = text.replace("(", "").replace(")", "").replace(" ", "")
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?", bare):
        bare = bare.replace(",", "")
    if not re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)(/[+-]?\d+)?", bare):
        return None
    top, _, bottom = bare.partition("/")
    if bottom and int(bottom) == 0:
        return None
    return str(Fraction(top) / Fraction(bottom or 1))


def same_answer(first: str, second: str) -> bool:
    """Whether two exact answers say the same."""
    return normal_form(first) == normal_form(second)


@dataclass(frozen=True, slots=True)
class ExactScores:
    """Two systems on the questions that have an exact answer: one entry a question, True where right."""

    ids: tuple[str, ...]
    a: tuple[bool, ...]
    b: tuple[bool, ...]
    unread_a: int  # answers in which no exact answer was found; they count as wrong
    unread_b: int


def score_exact(a: Sequence[Response], b: Sequence[Response], gold: Mapping[str, str]) -> ExactScores:
    """Compare both systems' extracted answers with the exact ones."""
    texts_a = {response.id: response.text for response in a}
    texts_b = {response.id: response.text for response in b}
    ids = tuple(name for name in texts_a if name in gold and name in texts_b)
    found_a = [extract_answer(texts_a[name] or "") for name in ids]
    found_b = [extract_answer(texts_b[name] or "") for name in ids]
    return ExactScores(
        ids=ids,
        a=tuple(_right(found, gold[name]) for found, name in zip(found_a, ids, strict=True)),
        b=tuple(_right(found, gold[name]) for found, name in zip(found_b, ids, strict=True)),
        unread_a=found_a.count(None),
        unread_b=found_b.count(None),
    )


def _right(found: str | None, gold: str) -> bool:
    return found is not None and same_answer(found, gold)
