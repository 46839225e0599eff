"""What the steering commands read: prompts, contrast pairs, layer ranges, weighted vectors."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smelt.core.errors import LatentError

if TYPE_CHECKING:
    from smelt.latent.steering import SteeringVector


def parse_layers(text: str | None) -> list[int] | None:
    """Layers such as ``20``, ``10-14`` or ``3,8-10``; None for None.

    >>> parse_layers("3,8-10")
    [3, 8, 9, 10]
    """
    if text is None:
        return None
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise LatentError(f"layers {text!r}", expected="numbers and ranges, such as 3,8-10")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(found)


def parse_position(text: str) -> str | int:
    """``all``, ``last``, ``first`` or a token index as a number."""
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def read_prompts(path: Path) -> list[Any]:
    """Prompts of a file: a line of text each, or JSON lines with ``prompt`` or ``messages``."""
    rows = [_prompt(row, path, number) for number, row in _lines(path)]
    if not rows:
        raise LatentError("no prompts", where=str(path), expected="one on each line")
    return rows


def read_pairs(path: Path) -> tuple[list[Any], list[Any]]:
    """Contrast pairs: JSON lines with ``positive`` and ``negative``, each a text or a list of messages."""
    positive, negative = [], []
    for number, row in _lines(path):
        if not isinstance(row, dict) or "positive" not in row or "negative" not in row:
            raise LatentError(
                "not a pair", where=f"{path}:{number}", expected='{"positive": ..., "negative": ...}'
            )
        positive.append(row["positive"])
        negative.append(row["negative"])
    if not positive:
        raise LatentError("no pairs", where=str(path), expected="one on each line")
    return positive, negative


def _lines(path: Path) -> list[tuple[int, Any]]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise LatentError(f"cannot read {path}: {error}") from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if path.suffix not in (".jsonl", ".json"):
        return lines
    rows = []
    for number, line in lines:
        try:
            rows.append((number, json.loads(line)))
        except json.JSONDecodeError as error:
            raise LatentError(f"not JSON: {error}", where=f"{path}:{number}") from error
    return rows


def _prompt(row: Any, path: Path, number: int) -> Any:
    if isinstance(row, dict):
        row = row.get("messages") or row.get("prompt") or row.get("question")
    if not row or not isinstance(row, (str, list)):
        raise LatentError(
            "no prompt", where=f"{path}:{number}", expected='text, {"prompt": ...} or {"messages": ...}'
        )
    return row


def split_weight(text: str) -> tuple[Path, float]:
    """A vector with its strength, ``file`` or ``file=0.5``.

    >>> split_weight("calm.safetensors=-0.5")
    (PosixPath('calm.safetensors'), -0.5)
    """
    match = re.fullmatch(r"(.+)=([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)", text)
    return (Path(match[1]), float(match[2])) if match else (Path(text), 1.0)


def weighted_sum(texts: Sequence[str], layers: Sequence[int] | None = None) -> SteeringVector:
    """The vectors of several ``file=weight`` arguments, added up, at the chosen layers."""
    from smelt.latent.steering import SteeringVector

    parts = [SteeringVector.load(path) * weight for path, weight in map(split_weight, texts)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total if layers is None else total.select(layers)
