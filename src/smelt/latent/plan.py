"""Turns settings into what a forward pass needs: checked layers, coefficients, and how deep each donor must
run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from smelt.core.errors import LatentError
from smelt.latent.recipe import Settings, Site, Steer

Beta = float | Sequence[float] | torch.Tensor | None


@dataclass(frozen=True, eq=False, slots=True)
class TowerInfo:
    """What a plan must know of one donor."""

    depth: int
    engine: str
    shared: int  # -1: embeddings differ; k: embeddings and the first k layers equal the base's
    full_depth: int
    projected: frozenset[int] | None = None  # layers with a projection; None when the widths agree


@dataclass(frozen=True, eq=False, slots=True)
class ActiveSite:
    """A site with its layer resolved and one coefficient per donor."""

    layer: int
    site: Site
    coefs: tuple[float, ...]
    donor_layers: tuple[int, ...]

    @property
    def conditional(self) -> bool:
        """Whether the coefficients differ between tokens."""
        return self.site.gate is not None or (self.site.schedule is not None and self.site.schedule.varies)


@dataclass(frozen=True, eq=False, slots=True)
class Plan:
    """One way to run the wrapper."""

    sites: dict[int, ActiveSite]
    steers: dict[int, tuple[Steer, ...]]
    scope: str
    need: tuple[int, ...]
    start: tuple[int, ...]
    needs_origin: bool

    @property
    def idle(self) -> bool:
        """Nothing would change a state: the base may run alone."""
        return not self.sites and not self.steers


def resolve_layer(layer: int | str, depth: int, where: str = "site") -> int:
    """A layer as a number in 0..depth.

    >>> resolve_layer("0.75n", 28), resolve_layer("last", 28), resolve_layer(20, 28)
    (21, 28, 20)
    """
    if layer == "last":
        return depth
    if isinstance(layer, str):
        share = re.fullmatch(r"([01]?(?:\.\d+)?)n", layer.strip())
        if share and share[1]:
            layer = round(float(share[1]) * depth)
        elif layer.strip().lstrip("-").isdigit():
            layer = int(layer)
        else:
            raise LatentError(
                f"layer {layer!r}", where=where, expected=f"0..{depth}, a share like '0.75n', or 'last'"
            )
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise LatentError(
            f"layer {layer!r}", where=where, expected=f"0..{depth}, a share like '0.75n', or 'last'"
        )
    if layer < 0:
        raise LatentError(
            f"layer {layer} is negative",
            where=where,
            expected=f"0..{depth}",
            fix=f"the input of the last layer is {depth - 1}, its output is 'last'",
        )
    if layer > depth:
        raise LatentError(f"layer {layer} is beyond the last", where=where, expected=f"0..{depth}")
    return layer


def site_coefs(site: Site, donors: int, beta: Sequence[float] | None = None) -> tuple[float, ...]:
    """One coefficient per donor: every operator but slerp and gram is a linear mix with these.

    >>> site_coefs(Site(3, "regmean", lam=1.0), 1)
    (0.5,)
    """
    weights = tuple(beta) if beta is not None else site.weights
    where = f"site at layer {site.layer!r} ({site.op})"
    if site.op == "proxy":
        if donors != 2 or len(weights) != 1:
            raise LatentError(
                f"{donors} donors and {len(weights)} weights",
                where=where,
                expected="two donors (expert, anti-expert) and one weight",
            )
        return (weights[0], -weights[0])
    if site.op == "regmean" and len(weights) == 1 and donors > 1:
        weights = weights * donors
    if len(weights) != donors:
        raise LatentError(
            f"{len(weights)} weights for {donors} donors", where=where, expected="one weight per donor"
        )
    if site.op == "regmean" and site.reading != "gram":
        return _regmean_coefs(site, weights, beta is not None, where)
    if (site.op == "slerp" and donors > 1) or site.op == "regmean":
        _check_shares(weights, where)
    return weights


def _regmean_coefs(site: Site, weights: tuple[float, ...], direct: bool, where: str) -> tuple[float, ...]:
    total = sum(weights)
    if direct:
        return weights
    if total == 0:
        raise LatentError("the weights sum to 0", where=where, expected="weights with a mean")
    count = len(weights)
    ratio = 1 / (1 + site.lam) if site.reading == "shrink" else (1 - site.lam) * count / (count + 1)
    return tuple(ratio * weight / total for weight in weights)


def _check_shares(weights: Sequence[float], where: str) -> None:
    if min(weights) < 0 or sum(weights) > 1 + 1e-9:
        raise LatentError(
            f"weights {list(weights)}", where=where, expected="shares of at least 0 that sum to at most 1"
        )


def compile_plan(settings: Settings, base_depth: int, towers: Sequence[TowerInfo], beta: Beta = None) -> Plan:
    """Check settings against the towers and work out what has to run."""
    live = isinstance(beta, torch.Tensor)
    values = (
        None
        if beta is None or live
        else ([beta] if isinstance(beta, int | float) else [float(b) for b in beta])
    )
    sites: dict[int, ActiveSite] = {}
    for site in settings.sites:
        active = _activate(site, base_depth, towers, values)
        if active.layer in sites:
            raise LatentError(f"two sites at layer {active.layer}", expected="at most one site per layer")
        sites[active.layer] = active
    acting = {layer: site for layer, site in sites.items() if live or _acts(site)}
    need = tuple(_needed(acting, donor, live) for donor in range(len(towers)))
    steers = _steers(settings.steer, base_depth)
    first = min([*acting, *steers], default=base_depth)
    start = tuple(max(0, min(tower.shared, first)) for tower in towers)
    _check_depths(acting, need, towers)
    _warn_no_ops(acting, towers, need)
    origin = settings.scope == "generated" and bool(acting or steers)
    origin = origin or any(site.site.schedule and site.site.schedule.varies for site in acting.values())
    origin = origin or any(steer.scope == "generated" for items in steers.values() for steer in items)
    return Plan(acting, steers, settings.scope, need, start, bool(origin))


def _activate(
    site: Site, depth: int, towers: Sequence[TowerInfo], beta: Sequence[float] | None
) -> ActiveSite:
    layer = resolve_layer(site.layer, depth)
    coefs = site_coefs(site, len(towers), beta)
    if site.donor_layers is not None and len(site.donor_layers) != len(towers):
        raise LatentError(
            f"{len(site.donor_layers)} donor layers for {len(towers)} donors", where=f"layer {layer}"
        )
    chosen = []
    for index, tower in enumerate(towers):
        if tower.engine == "lockstep":
            wanted = layer if site.donor_layers is None else site.donor_layers[index]
            if wanted != layer:
                raise LatentError(
                    "donor_layers needs the tower engine",
                    where=f"site at layer {layer}",
                    fix="engine='tower'",
                )
        elif site.donor_layers is not None:
            wanted = resolve_layer(site.donor_layers[index], tower.full_depth, f"donor {index}")
        else:
            wanted = layer if tower.full_depth == depth else round(layer * tower.full_depth / depth)
        if site.feedback and tower.engine == "tower":
            raise LatentError(
                "feedback needs the lockstep engine", where=f"site at layer {layer}, donor {index}"
            )
        if tower.projected is not None and layer not in tower.projected:
            raise LatentError(
                f"no projection for layer {layer}",
                where=f"donor {index}",
                expected=f"one of {sorted(tower.projected)}",
                fix="model.fit_projections(token_batches, sites)",
            )
        chosen.append(wanted)
    return ActiveSite(layer, site, coefs, tuple(chosen))


def _acts(site: ActiveSite) -> bool:
    schedule = site.site.schedule
    if schedule is not None and schedule.start == 0 and (schedule.end == 0 or not schedule.varies):
        return False
    return any(site.coefs) or (site.site.op == "regmean" and site.site.reading == "gram")


def _needed(sites: dict[int, ActiveSite], donor: int, live: bool) -> int:
    depths = [site.donor_layers[donor] for site in sites.values() if live or site.coefs[donor] != 0]
    return max(depths, default=-1)


def _check_depths(sites: dict[int, ActiveSite], need: Sequence[int], towers: Sequence[TowerInfo]) -> None:
    for index, (wanted, tower) in enumerate(zip(need, towers, strict=True)):
        if wanted > tower.depth:
            raise LatentError(
                f"donor {index} holds {tower.depth} layers",
                where=f"sites at {sorted(sites)}",
                expected=f"at least {wanted}",
                fix="load the donor with more layers (depth=...) or lower the site",
            )


def _warn_no_ops(sites: dict[int, ActiveSite], towers: Sequence[TowerInfo], need: Sequence[int]) -> None:
    for layer, site in sites.items():
        idle = [i for i, tower in enumerate(towers) if site.coefs[i] != 0 and layer <= tower.shared]
        if idle and layer == min(sites):
            warnings.warn(
                f"site at layer {layer} changes nothing for donor {idle[0]}: its embeddings and first "
                f"{towers[idle[0]].shared} layers equal the base's",
                stacklevel=4,
            )


def _steers(steers: Sequence[Steer], depth: int) -> dict[int, tuple[Steer, ...]]:
    found: dict[int, tuple[Steer, ...]] = {}
    for steer in steers:
        layer = resolve_layer(steer.layer, depth, "steer")
        if steer.alpha != 0:
            found[layer] = (*found.get(layer, ()), steer)
    return found
