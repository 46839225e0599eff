"""The merges held against float64 references, and one recipe a method for the byte comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import reference as ref
from bench.reference import Array

Formula = Callable[[Array, list[Array]], Array]  # (base, models in order) -> result
FINE = ("code", "math", "chat")


@dataclass(frozen=True, slots=True)
class Exact:
    """A recipe and the float64 formula of what it must give."""

    name: str
    method: str
    models: tuple[str, ...]
    reference: Formula
    base: str = ""
    each: Mapping[str, Sequence[float]] = field(default_factory=dict)  # per-model parameters
    settings: Mapping[str, Any] = field(default_factory=dict)
    identity: bool = True  # merging a model with itself must return it

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*([self.base] if self.base else []), *self.models)))

    def recipe(self, folders: Mapping[str, Path]) -> dict[str, Any]:
        """The recipe over real folders."""
        models = []
        for position, name in enumerate(self.models):
            own = {key: values[position] for key, values in self.each.items()}
            models.append({"model": str(folders[name]), **({"parameters": own} if own else {})})
        document: dict[str, Any] = {"merge_method": self.method, "models": models, "dtype": "bfloat16"}
        if self.base:
            document["base_model"] = str(folders[self.base])
        if self.settings:
            document["parameters"] = dict(self.settings)
        return document


def _averages() -> list[Exact]:
    thirds, tenths = (1.0, 1.0, 1.0), (0.5, 0.3, 0.2)
    return [
        Exact("linear, equal", "linear", FINE, lambda b, x: ref.linear(x, thirds), each={"weight": thirds}),
        Exact("linear, .5 .3 .2", "linear", FINE, lambda b, x: ref.linear(x, tenths),
              each={"weight": tenths}),
        Exact("linear, .3 .7", "linear", FINE[:2], lambda b, x: ref.linear(x, (0.3, 0.7)),
              each={"weight": (0.3, 0.7)}),
        Exact("linear, normalize off", "linear", FINE, lambda b, x: ref.linear(x, tenths, normalize=False),
              each={"weight": tenths}, settings={"normalize": False}),
        Exact("passthrough", "passthrough", ("code",), lambda b, x: x[0]),
        Exact("passthrough, scale .7", "passthrough", ("code",), lambda b, x: ref.passthrough(x[0], 0.7),
              each={"scale": (0.7,)}, identity=False),
    ]  # fmt: skip


def _turns() -> list[Exact]:
    pair, weights = FINE[:2], (0.4, 0.6)
    three = (0.5, 0.3, 0.2)
    rows, columns = {"nuslerp_flatten": False}, {"nuslerp_flatten": False, "nuslerp_row_wise": True}

    def nuslerp(name: str, settings: Mapping[str, Any], **how: Any) -> Exact:
        based = "task vectors" in name
        return Exact(
            name, "nuslerp", pair, base="base" if based else "", each={"weight": weights}, settings=settings,
            reference=lambda b, x: ref.nuslerp(x[0], x[1], weights, base=b if based else None, **how),
        )  # fmt: skip

    return [
        Exact("slerp, t = .4", "slerp", pair, lambda b, x: ref.slerp(x[0], x[1], 0.4), base="code",
              settings={"t": 0.4}),
        nuslerp("nuslerp", {}),
        nuslerp("nuslerp, rows", rows, axis=-1),
        nuslerp("nuslerp, columns", columns, axis=0),
        nuslerp("nuslerp, task vectors", {}),
        nuslerp("nuslerp, task vectors by rows", rows, axis=-1),
        Exact("multislerp", "multislerp", FINE, lambda b, x: ref.multislerp(x, three),
              each={"weight": three}),
        Exact("multislerp, task vectors", "multislerp", FINE,
              lambda b, x: ref.multislerp(x, three, base=b), base="base", each={"weight": three}),
        Exact("karcher", "karcher", FINE, lambda b, x: ref.karcher(x)),
        Exact("model_stock", "model_stock", FINE, lambda b, x: ref.model_stock(b, x), base="base"),
        Exact("model_stock, rows", "model_stock", FINE,
              lambda b, x: ref.model_stock(b, x, filter_wise=True), base="base",
              settings={"filter_wise": True}),
    ]  # fmt: skip


def _task_vectors() -> list[Exact]:
    weights = (0.6, 0.4, 0.3)

    def ties(name: str, density: Sequence[float], settings: Mapping[str, Any], **how: Any) -> Exact:
        return Exact(
            name, "ties", FINE, base="base", each={"weight": weights, "density": density}, settings=settings,
            reference=lambda b, x: ref.ties(b, x, weights, density, **how),
        )  # fmt: skip

    def full(method: str, reference: Formula) -> Exact:
        return Exact(f"{method}, density 1", method, FINE, reference, base="base",
                     each={"weight": weights, "density": (1.0,) * 3})  # fmt: skip

    return [
        Exact("task_arithmetic", "task_arithmetic", FINE,
              lambda b, x: ref.task_arithmetic(b, x, weights), base="base", each={"weight": weights}),
        Exact("task_arithmetic, normalize, lambda .7", "task_arithmetic", FINE,
              lambda b, x: ref.task_arithmetic(b, x, weights, normalize=True, scale=0.7),
              base="base", each={"weight": weights}, settings={"normalize": True, "lambda": 0.7}),
        ties("ties, density .5", (0.5,) * 3, {}),
        ties("ties, densities .2 .9 .5", (0.2, 0.9, 0.5), {}),
        ties("ties, normalize off", (0.5,) * 3, {"normalize": False}, normalize=False),
        ties("ties, lambda .7", (0.5,) * 3, {"lambda": 0.7}, scale=0.7),
        ties("ties, rescale", (0.5,) * 3, {"rescale": True}, rescale=True),
        full("dare_linear", lambda b, x: ref.task_arithmetic(b, x, weights)),
        full("dare_ties", lambda b, x: ref.ties(b, x, weights, (1.0,) * 3, normalize=False)),
    ]  # fmt: skip


def all_cases(*, identity: bool = False) -> list[Exact]:
    """Every case; ``identity`` leaves out those whose self-merge is not the model itself."""
    return [case for case in [*_averages(), *_turns(), *_task_vectors()] if case.identity or not identity]


def _random(method: str) -> Exact:
    each = {"weight": (0.6, 0.4, 0.3), "density": (0.5, 0.3, 0.8)}
    return Exact(method, method, FINE, lambda b, x: b, base="base", each=each)


SCHEDULED = (
    "linear, .5 .3 .2",
    "slerp, t = .4",
    "nuslerp",
    "nuslerp, columns",
    "multislerp",
    "karcher",
    "model_stock",
    "model_stock, rows",
    "passthrough, scale .7",
    "task_arithmetic",
    "ties, densities .2 .9 .5",
    "ties, rescale",
)


def schedule_cases() -> list[Exact]:
    """At least one recipe a method, random ones included, for the byte comparisons (no reference needed)."""
    chosen = [case for case in all_cases() if case.name in SCHEDULED]
    return [*chosen, _random("dare_linear"), _random("dare_ties")]
