"""Task vectors: thinned, weighted, elected, summed. What the task-arithmetic family shares."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from smelt.methods._params import weighed
from smelt.numerics.expr import Sym, any_of, literal, shifted, total, uniform, where, wide
from smelt.numerics.stats import KEEP_ALL, KEEP_NONE, Cut, Measuring, Sum, TensorInfo, Top, keep_top

#: a sum of weights below this counts as zero
TINY = 1e-8


@dataclass(frozen=True, slots=True)
class Thinning:
    """How each task vector is thinned: an exact cut or a random stream, and the factor that follows."""

    cuts: tuple[Cut, ...] = ()
    keys: tuple[int, ...] = ()
    density: tuple[float, ...] = ()
    factors: tuple[float, ...] | None = None
    divisors: tuple[float, ...] | None = None

    @property
    def scales(self) -> tuple[float, ...] | None:
        """The factor of each thinned task vector."""
        return tuple(1.0 / share for share in self.divisors) if self.divisors is not None else self.factors

    def apply(self, deltas: Sequence[Sym], *, scaled: bool = True) -> list[Sym]:
        """The thinned task vectors."""
        thin = [self._thin(position, delta) for position, delta in enumerate(deltas)]
        if scaled and self.factors is not None:
            return [delta * factor for delta, factor in zip(thin, self.factors, strict=True)]
        if scaled and self.divisors is not None:
            return [delta / share for delta, share in zip(thin, self.divisors, strict=True)]
        return thin

    def _thin(self, position: int, delta: Sym) -> Sym:
        if self.cuts:
            return keep_top(abs(delta), self.cuts[position], of=delta)
        if self.density[position] >= 1.0:
            return delta
        return where(uniform(self.keys[position]) < self.density[position], delta, 0.0)


def measure_magnitude(
    base: Sym, models: Sequence[Sym], info: TensorInfo, *,
    density: list[float], rescale: bool, rescale_norm: str, scope: str, **_: Any,
) -> Measuring:  # fmt: skip
    """Exact cuts that keep the largest elements of each task vector."""
    deltas = [model - base for model in models]
    open_cuts = [position for position, share in enumerate(density) if 0.0 < share < 1.0]
    found = yield [Top(abs(deltas[position]), density[position], scope, position) for position in open_cuts]  # type: ignore[arg-type]
    cuts = [KEEP_ALL if share >= 1.0 else KEEP_NONE for share in density]
    for position, cut in zip(open_cuts, found, strict=True):
        cuts[position] = cut
    thinning = Thinning(cuts=tuple(cuts), density=tuple(density))
    return (yield from rescaled(deltas, thinning, rescale, rescale_norm))


def measure_random(
    base: Sym, models: Sequence[Sym], info: TensorInfo, *,
    density: list[float], rescale: bool, rescale_norm: str, **_: Any,
) -> Measuring:  # fmt: skip
    """Random streams that keep each element with probability ``density``."""
    deltas = [model - base for model in models]
    keys = tuple(info.key(position) for position in range(len(models)))
    thinning = Thinning(keys=keys, density=tuple(density))
    return (yield from rescaled(deltas, thinning, rescale, rescale_norm))


def rescaled(
    deltas: Sequence[Sym], thinning: Thinning, rescale: bool, norm: str
) -> Generator[list[Any], list[Any], Thinning]:
    """The thinning with what brings each task vector back to size."""
    if not rescale:
        return thinning
    if norm == "inverse_density":
        return replace(thinning, divisors=tuple(share if share > 0 else 1.0 for share in thinning.density))
    before = [Sum(wide(abs(delta))) for delta in deltas]
    after = [Sum(wide(abs(delta))) for delta in thinning.apply(deltas, scaled=False)]
    sums = yield before + after
    pairs = zip(sums[: len(deltas)], sums[len(deltas) :], strict=True)
    return replace(thinning, factors=tuple(full / left if left > 0 else 1.0 for full, left in pairs))


def add_mix(base: Sym, deltas: Sequence[Sym], weight: list[float], normalize: bool, scale: float) -> Sym:
    """base + scale * sum w d [/ sum w]; each step as written, since numbers scaled first would round twice."""
    mix = total(weighed(deltas, weight))
    share = sum(weight)
    if normalize and abs(share) >= TINY and share != 1:
        mix = mix / share
    return shifted(base, mix if scale == 1 else mix * scale)


def add_elected(base: Sym, deltas: Sequence[Sym], weight: list[float], normalize: bool, scale: float) -> Sym:
    """As ``add_mix``, keeping per element only what agrees with the sign of the weighted sum.

    The election runs in float64: task vectors of 16-bit models often cancel exactly, and a rounded sum would
    then vote at random.
    """
    parts = weighed(deltas, weight)
    positive = total(weighed([wide(delta) for delta in deltas], weight)) >= 0.0
    agrees = [(positive & (part > 0.0)) | (~positive & (part < 0.0)) for part in parts]
    mix = total(where(agree, part, 0.0) for agree, part in zip(agrees, parts, strict=True))
    if normalize:
        share = total(where(agree, w, 0.0) for agree, w in zip(agrees, _shared(weight), strict=True))
        mix = mix / (share if min(weight) > 0 else where(share == 0.0, literal(1.0), share))
    changes = any_of(agrees)
    return where(changes, base + (mix if scale == 1 else mix * scale), base) if scale else base


def _shared(weight: list[float]) -> list[Sym]:
    """Weights as constants; one for all when they are equal."""
    first = Sym.lift(weight[0])
    return [first if w == weight[0] else Sym.lift(w) for w in weight]
