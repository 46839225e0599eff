"""The merges of the benchmark: recipes both smelt and mergekit read, and the bounds smelt promises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FINE_TUNES = ("code", "math", "chat")


@dataclass(frozen=True, slots=True)
class Bench:
    """One row of the table."""

    method: str
    models: tuple[str, ...]
    base: bool
    speedup: float  # at least this many times faster than mergekit
    over_floor: float  # wall less the interpreter's start, at most this many times the I/O floor
    weight: float | None = None
    density: float | None = None
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Every model that is read."""
        return ("base", *self.models) if self.base else self.models

    def recipe(self, folders: Mapping[str, Path]) -> dict[str, Any]:
        """The recipe with the models' real folders."""
        each = {"weight": self.weight, "density": self.density}
        parameters = {name: value for name, value in each.items() if value is not None}
        entry = {"parameters": parameters} if parameters else {}
        document: dict[str, Any] = {
            "merge_method": self.method,
            "models": [{"model": str(folders[name]), **entry} for name in self.models],
            "dtype": "bfloat16",
        }
        if self.base:
            document["base_model"] = str(folders["base"])
        if self.method == "slerp":
            document["base_model"] = str(folders[self.models[0]])
        if self.settings:
            document["parameters"] = dict(self.settings)
        return document

    def write(self, folders: Mapping[str, Path], to: Path) -> Path:
        """The recipe as a file."""
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(yaml.safe_dump(self.recipe(folders), sort_keys=False))
        return to


BENCHES: dict[str, Bench] = {
    bench.method: bench
    for bench in (
        Bench("linear", FINE_TUNES, base=False, speedup=6, over_floor=1.5, weight=1.0),
        Bench("slerp", FINE_TUNES[:2], base=False, speedup=18, over_floor=2, settings=(("t", 0.4),)),
        Bench("task_arithmetic", FINE_TUNES, base=True, speedup=7, over_floor=1.5, weight=0.4),
        Bench("ties", FINE_TUNES, base=True, speedup=30, over_floor=4, weight=1.0, density=0.5),
        Bench("dare_ties", FINE_TUNES, base=True, speedup=20, over_floor=4, weight=1.0, density=0.5),
        Bench("karcher", FINE_TUNES, base=False, speedup=10, over_floor=2),
        Bench("model_stock", FINE_TUNES, base=True, speedup=7, over_floor=2),
    )
}
