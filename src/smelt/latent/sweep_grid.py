"""The cells of a sweep: sites x operators x ratios x scopes, and the baselines that every grid brings along."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from smelt.core.errors import LatentError, did_you_mean
from smelt.latent.plan import resolve_layer, site_coefs
from smelt.latent.recipe import SCOPES, Site, choose

OPS = ("lerp", "slerp", "regmean", "regmean:penalty", "regmean:gram", "task_vector")
ENSEMBLES = ("logits", "probs")
BASELINES = ("base", "donor", "weight", "ensemble", "stitched")
KINDS = (*BASELINES, "latent")


@dataclass(frozen=True, slots=True)
class Cell:
    """One system to measure. ``beta`` is the share of the donor; regmean has ``lam`` instead.

    >>> Cell("latent", "slerp", (21,), 0.5).name
    'latent slerp L21 β=0.5'
    """

    kind: str
    op: str = ""
    layers: tuple[int, ...] = ()
    beta: float | None = None
    lam: float | None = None
    scope: str = "all"

    @property
    def name(self) -> str:
        """For tables and messages."""
        parts = [self.kind, self.op]
        parts += ["L" + "+".join(map(str, self.layers))] if self.layers else []
        parts += [f"β={self.beta:g}"] if self.beta is not None and self.kind != "stitched" else []
        parts += [f"λ={self.lam:g}"] if self.lam is not None else []
        parts += ["generated"] if self.scope == "generated" else []
        return " ".join(part for part in parts if part)

    @property
    def family(self) -> str:
        """Cells of one family differ only in layer, ratio and scope: the best of each is reported."""
        return " ".join(part for part in (self.kind, self.op) if part)

    @property
    def ratio(self) -> float | None:
        """The share of the donor this cell ends up with; None for Gram matrices, which have no one ratio."""
        if self.beta is not None or self.kind != "latent":
            return {"base": 0.0, "donor": 1.0, "stitched": 1.0}.get(self.kind, self.beta)
        return None if self.op == "regmean:gram" else site_coefs(self.sites()[0], 1)[0]

    def sites(self) -> tuple[Site, ...]:
        """The sites of a latent cell."""
        op, _, reading = self.op.partition(":")
        more: dict[str, Any] = {} if self.lam is None else {"lam": self.lam, "reading": reading or "shrink"}
        weights = (1.0,) if self.beta is None else (self.beta,)
        return tuple(Site(layer, op, weights, **more) for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """What identifies the cell."""
        return {**asdict(self), "layers": list(self.layers)}


@dataclass(frozen=True, slots=True)
class Grid:
    """What to try. ``sites``: layers, shares of the depth, ``last``, or several at once as ``"5+0.75n"``.

    ``lambdas`` are the ratios of regmean; the published tables use the same numbers for both.

    >>> len(Grid(("0", "0.5n", "last"), ("lerp", "slerp"), (0.25, 0.5)).latent(depth=4))
    12
    """

    sites: tuple[str, ...]
    ops: tuple[str, ...] = ("lerp", "slerp", "regmean")
    ratios: tuple[float, ...] = (0.25, 0.5, 0.75)
    lambdas: tuple[float, ...] = ()
    scopes: tuple[str, ...] = ("all",)

    def __post_init__(self) -> None:
        for name in ("sites", "ops", "ratios", "scopes"):
            if not getattr(self, name):
                raise LatentError(f"no {name} to try", where="sweep", expected="at least one")
        for op in self.ops:
            if op not in OPS:
                raise LatentError(f"unknown operator {op!r}", where="sweep", fix=did_you_mean(op, OPS))
        for scope in self.scopes:
            choose(scope, SCOPES, "scope", "sweep")
        if "regmean:gram" in self.ops and "all" in self.scopes:
            what = (
                "regmean:gram at all tokens: its Gram matrices are the prompt's, which it would look ahead in"
            )
            raise LatentError(what, where="sweep", expected="scope generated alone")
        outside = [ratio for ratio in self.ratios if not 0 <= ratio <= 1]
        if "slerp" in self.ops and outside:
            what = f"slerp with ratio {outside[0]:g}"
            raise LatentError(
                what, where="sweep", expected="0 to 1", fix="sweep lerp by itself to extrapolate"
            )

    def resolved(self, depth: int) -> list[tuple[int, ...]]:
        """The places, each a tuple of layers, in order and each once."""
        places = []
        for text in self.sites:
            parts = [resolve_layer(part.strip(), depth, "sweep") for part in str(text).split("+")]
            if len(set(parts)) < len(parts):
                raise LatentError(f"site {text!r} names one layer twice", where="sweep")
            places.append(tuple(sorted(parts)))
        return list(dict.fromkeys(places))

    def latent(self, depth: int) -> list[Cell]:
        """The blends."""
        return [
            Cell("latent", op, place, scope=scope, **_ratio(op, value))
            for scope in self.scopes
            for op in self.ops
            for place in self.resolved(depth)
            for value in (self.lambdas or self.ratios if op.startswith("regmean") else self.ratios)
        ]

    def baselines(self, depth: int) -> list[Cell]:
        """What every blend has to be compared with: at the same ratios, and cut at the same layers."""
        latent = self.latent(depth)
        shares = [ratio for ratio in self.ratios if 0 <= ratio <= 1] or [0.5]
        weights = dict.fromkeys((weight_op(cell.op), cell.ratio) for cell in latent if cell.ratio is not None)
        found = [Cell("base"), Cell("donor")]
        found += [Cell("weight", op, beta=ratio) for op, ratio in weights]
        found += [Cell("ensemble", op, beta=share) for op in ENSEMBLES for share in shares]
        single = [place for place in self.resolved(depth) if len(place) == 1]
        return found + [Cell("stitched", layers=place, beta=1.0) for place in single]

    def cells(self, depth: int) -> list[Cell]:
        """Baselines first, then all blends."""
        return [*self.baselines(depth), *self.latent(depth)]


def _ratio(op: str, value: float) -> dict[str, float]:
    return {"lam": value} if op.startswith("regmean") else {"beta": value}


def weight_op(op: str) -> str:
    """The weight merge that a latent operator is compared with: slerp, or else the weighted average.

    RegMean's shrink and penalty readings are weighted averages in all but name, so theirs is the average too.
    """
    return "slerp" if op == "slerp" else "linear"


def parse_list(text: str | None) -> tuple[str, ...]:
    """Comma-separated words.

    >>> parse_list("0, 0.75n,last")
    ('0', '0.75n', 'last')
    """
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def parse_numbers(text: str | None, option: str) -> tuple[float, ...]:
    """Comma-separated finite numbers.

    >>> parse_numbers(".25,.5", "--ratios")
    (0.25, 0.5)
    """
    found = []
    for part in parse_list(text):
        try:
            number = float(part)
        except ValueError:
            number = float("nan")
        if not abs(number) < float("inf"):
            raise LatentError(f"{part!r} is no number", where=option, expected="numbers such as .25,.5,.75")
        found.append(number)
    return tuple(dict.fromkeys(found))


def published_grid(depth: int, ops: Sequence[str] = ("lerp", "slerp", "regmean")) -> Grid:
    """Layers 0, 5, 10, 15, 20, 25, 27 of 28 scaled to another depth, ratios 1/4, 1/2 and 3/4, three operators.

    >>> published_grid(28).sites, published_grid(4).sites
    (('0', '5', '10', '15', '20', '25', '27'), ('0', '1', '2', '3'))
    """
    layers: Iterable[int] = (round(layer * (depth - 1) / 27) for layer in (0, 5, 10, 15, 20, 25, 27))
    return Grid(tuple(str(layer) for layer in dict.fromkeys(layers)), tuple(ops))
