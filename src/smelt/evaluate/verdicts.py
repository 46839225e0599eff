"""From a judge's words or probabilities to a verdict; what is not clearly one is invalid, never a tie."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

#: verdict -> how far the answer shown first is ahead
GRADES: dict[str, int] = {"A>>B": 2, "A>B": 1, "A": 1, "A=B": 0, "C": 0, "B>A": -1, "B": -1, "B>>A": -2}
BRACKETED = re.compile(r"\[\[\s*(A\s*>>\s*B|B\s*>>\s*A|A\s*>\s*B|B\s*>\s*A|A\s*=\s*B|B\s*=\s*A|[ABC])\s*\]\]")
MIRRORED = {"A<<B": "B>>A", "A<B": "B>A", "B<<A": "A>>B", "B<A": "A>B", "B=A": "A=B"}
LESS = re.compile(r"\[\[\s*([AB])\s*(<{1,2})\s*([AB])\s*\]\]")
BARE = re.compile(r"[\s*_`\"'(\[]*([ABC])[\s*_`\"')\].:!]*", re.I)
STATED = re.compile(
    r"(?:final\s+)?(?:verdict|answer|winner|choice|decision)\s*(?:is|:)+\s*"
    r"(?:(?:answer|assistant|response)\s+)?[\s*_`\"'(\[]*([ABC])\b[\s*_`\"')\].!]*",
    re.I,
)
THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.S | re.I)
OPEN_THOUGHT = re.compile(r"<think(?:ing)?>", re.I)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one reply says about the answer shown first: value 1 win, 1/2 tie, 0 loss, None invalid."""

    value: float | None
    token: str | None = None  # as written: A, B, C, A>>B, ...
    grade: int | None = None  # -2 .. 2
    invalid: str = ""  # why there is no verdict
    probability: float | None = None  # that the first is better, in logprob mode
    mass: float | None = None  # probability the model gave to any allowed letter

    @property
    def letter(self) -> str | None:
        """A, B or C (tie); None when invalid."""
        return None if self.grade is None else "CAB"[(self.grade > 0) - (self.grade < 0)]


def parse_verdict(reply: str | None, finish_reason: str | None = None, *, tie: bool = True) -> Verdict:
    """Read a verdict from text: bracketed, else a bare letter, else a last line that states one.

    >>> parse_verdict("B is wrong. [[A]]").value, parse_verdict("[[A]] or [[B]]").invalid
    (1.0, 'conflicting')
    """
    if not reply or not reply.strip():
        return Verdict(None, invalid="filtered" if finish_reason == "content_filter" else "empty")
    text = THOUGHT.sub(" ", reply).replace("\\[", "[").replace("\\]", "]")
    if OPEN_THOUGHT.search(text):
        return Verdict(None, invalid="truncated")
    found = _bracketed(text) or _plain(text)
    if len(found) > 1:
        return Verdict(None, invalid="conflicting")
    if not found:
        return Verdict(None, invalid="truncated" if finish_reason == "length" else "no verdict")
    verdict = _verdict(found.pop())
    return verdict if tie or verdict.grade else Verdict(None, invalid="a tie was not offered")


def _verdict(token: str) -> Verdict:
    grade = GRADES[token]
    return Verdict(value=(1 + (grade > 0) - (grade < 0)) / 2, token=token, grade=grade)


def _bracketed(text: str) -> set[str]:
    found = {"".join(match.split()) for match in BRACKETED.findall(text)}
    found |= {"".join(parts) for parts in LESS.findall(text)}
    return {MIRRORED.get(token, token) for token in found} & GRADES.keys()


def _plain(text: str) -> set[str]:
    whole = BARE.fullmatch(text)
    if whole:
        return {whole[1].upper()}
    last = text.strip().splitlines()[-1].strip()
    stated = STATED.fullmatch(last.strip("*_ "))
    return {stated[1].upper()} if stated else set()


def probability_verdict(top: Iterable[tuple[str, float]], *, tie: bool) -> Verdict:
    """A soft verdict from the first token's (token, log-probability) pairs: p(A) / (p(A) + p(B)).

    With ``tie`` the letter C counts half for each side. Tokens differing in space, case or marks are added.

    >>> round(probability_verdict([("A", -0.1), ("B", -2.4)], tie=False).probability, 2)
    0.91
    """
    mass = dict.fromkeys("ABC" if tie else "AB", 0.0)
    for token, logprob in top:
        letter = token.strip().strip("*_`\"'()[].:").upper()
        if letter in mass:
            mass[letter] += math.exp(logprob)
    total = math.fsum(mass.values())
    if total <= 0:
        return Verdict(None, invalid="no letter among the likeliest tokens", mass=0.0)
    first = (mass["A"] + mass.get("C", 0.0) / 2) / total
    token = max(mass, key=lambda letter: mass[letter])
    value = 0.5 if token == "C" else float(token == "A")
    return Verdict(value, token, GRADES[token], probability=first, mass=min(total, 1.0))
