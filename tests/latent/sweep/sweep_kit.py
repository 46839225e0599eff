"""Two tiny models of different weights, prompts with answers, and a small grid over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import latent_tiny as tiny

from smelt.latent.baselines import Arena
from smelt.latent.sweep_data import Sample
from smelt.latent.sweep_grid import Grid
from smelt.latent.sweep_measure import How

HOW = How(max_tokens=4, form="plain", batch=8, draws=50)
GRID = Grid(("0", "0.5n", "last"), ("lerp", "slerp", "regmean"), (0.0, 0.5, 1.0), (0.25, 0.5))
SMALL = Grid(("2",), ("lerp",), (0.5,))
TIMED = ("made", "seconds", "costs")


def arena() -> Arena:
    """Random weights: fast, and every cell is another model."""
    return Arena(tiny.tiny_causal(seed=0), tiny.tiny_causal(seed=1), tiny.byte_tokenizer(), ("b", "d"))


def prompts(count: int = 6, first: int = 0) -> list[Sample]:
    """Questions of two skills."""
    found = []
    for number in range(first, first + count):
        text = f"{'rs'[number % 2]}:ab{number}>"
        found.append(Sample(f"q{number}", text, text, f"a{number}", "rs"[number % 2]))
    return found


def write_prompts(path: Path, samples: list[Sample]) -> Path:
    """As a prompt file."""
    rows = [{"id": one.id, "prompt": one.text, "answer": one.answer, "skill": one.skill} for one in samples]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what differs from run to run."""
    return {name: value for name, value in row.items() if name not in TIMED}


def texts(row: dict[str, Any], out: Path) -> list[str]:
    """The answers a row rests on."""
    file = next((out / "answers").glob(f"*-{row['key'][:8]}.jsonl"))
    return [json.loads(line)["text"] for line in file.read_text().splitlines()]
