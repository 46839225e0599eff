"""Makes steering vectors: what a donor adds to its base, or what tells two sets of prompts apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from smelt.core.errors import LatentError, did_you_mean
from smelt.latent.hooks import decoder_layers
from smelt.latent.prompts import Prompt
from smelt.latent.states import States, check_sites, encode_all, iterate_states
from smelt.latent.steering import SteeringVector

METHODS = ("mean", "pca_diff", "pca_center")
NORMS = ("none", "unit", "hidden")
POSITIONS = ("all", "last", "first")

Position = str | int


def pick(states: Tensor, position: Position) -> Tensor:
    """The tokens (T', H) of a prompt that count: all, the last, the first, or the one at an index.

    >>> pick(torch.arange(6.0).reshape(3, 2), -2).tolist()
    [[2.0, 3.0]]
    """
    if position == "all":
        return states
    index = {"last": -1, "first": 0}.get(position, position) if isinstance(position, str) else position
    if isinstance(index, bool) or not isinstance(index, int):
        advice = did_you_mean(str(position), POSITIONS)
        raise LatentError(f"position {position!r}", expected="all, last, first or a whole number", fix=advice)
    if not -len(states) <= index < len(states):
        raise LatentError(f"no token {index} in a prompt of {len(states)} tokens", where="position")
    return states[index][None]


def extract_difference(
    base: nn.Module,
    donor: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    layers: Sequence[int] | None = None,
    position: Position = "all",
    norm: str = "none",
    batch_size: int = 8,
) -> SteeringVector:
    """What the donor adds to the base: the mean over prompts and tokens of ``h_donor - h_base`` per layer.

    With ``position="all"`` every token counts the same, so long prompts count more. Default layers: 1..n.
    """
    rows = encode_all(tokenizer, prompts)
    sites = _sites(base, layers)
    _check_pair(base, donor)
    sums = {site: torch.zeros((), dtype=torch.float64) for site in sites}
    lengths = dict.fromkeys(sites, 0.0)
    count = 0
    for mine, theirs in zip(
        _states(base, rows, sites, batch_size), _states(donor, rows, sites, batch_size), strict=True
    ):
        for site in sites:
            gap = pick(theirs[site].double() - mine[site].double(), position)
            sums[site] = sums[site] + gap.sum(dim=0)
            lengths[site] += float(pick(mine[site], position).double().norm(dim=-1).sum())
        count += len(pick(mine[sites[0]], position))
    vectors = {site: _scaled(sums[site] / count, lengths[site] / count, norm, site) for site in sites}
    made = {"how": "difference", "donor": _name(donor), "prompts": len(rows), "tokens": count}
    return _vector(base, vectors, {**made, "position": position, "norm": norm})


def extract_contrast(
    model: nn.Module,
    tokenizer: Any,
    positive: Sequence[Prompt],
    negative: Sequence[Prompt],
    *,
    method: str = "mean",
    layers: Sequence[int] | None = None,
    position: Position = "last",
    norm: str = "none",
    batch_size: int = 8,
) -> SteeringVector:
    """What tells the positive prompts from the negative ones, per layer (default: 1..n).

    ``mean``: difference of the means. ``pca_center``: first principal direction of all states, each pair
    centred on its own middle. ``pca_diff``: the same of the pairwise differences around their mean, as repeng
    does by default; what all pairs have in common is taken away, so it wants pairs that vary in strength. PCA
    directions have length 1 and point to where more positives than negatives lie; prompts come in pairs.
    """
    _choose(method, METHODS, "method")
    rows = encode_all(tokenizer, positive), encode_all(tokenizer, negative)
    if method != "mean" and len(rows[0]) != len(rows[1]):
        found = f"{len(rows[0])} positive and {len(rows[1])} negative prompts"
        raise LatentError(
            found, where=f"method {method!r}", expected="pairs", fix="method='mean' needs no pairs"
        )
    sites = _sites(model, layers)
    plus, minus = (_points(model, part, sites, position, batch_size) for part in rows)
    vectors: dict[int, Tensor] = {}
    share: dict[str, float] = {}
    for site in sites:
        direction, explained = _direction(plus[site], minus[site], method, site)
        length = float(torch.cat([plus[site], minus[site]]).norm(dim=-1).mean())
        vectors[site] = _scaled(direction, length, norm, site)
        if explained is not None:
            share[str(site)] = round(explained, 6)
    made = {"how": "contrast", "method": method, "positive": len(rows[0]), "negative": len(rows[1])}
    made |= {"explained": share} if share else {}
    return _vector(model, vectors, {**made, "position": position, "norm": norm})


def extract_activation_addition(
    model: nn.Module, tokenizer: Any, positive: Prompt, negative: Prompt, layer: int
) -> SteeringVector:
    """Activation addition from one pair of prompts: ``h(positive) - h(negative)`` token by token, (T, H).

    The shorter prompt counts as zero beyond its end. Apply it to the first tokens of a prompt.
    """
    rows = encode_all(tokenizer, [positive, negative])
    (plus, minus) = (states[layer] for states in _states(model, rows, _sites(model, [layer]), 2))
    delta = torch.zeros(max(len(plus), len(minus)), plus.shape[-1])
    delta[: len(plus)] += plus
    delta[: len(minus)] -= minus
    return _vector(model, {layer: delta}, {"how": "activation addition", "positive": 1, "negative": 1})


def _sites(model: nn.Module, layers: Sequence[int] | None) -> list[int]:
    depth = len(decoder_layers(model))
    return check_sites(layers, depth, default=range(1, depth + 1))


def _states(
    model: nn.Module, rows: Sequence[Tensor], sites: Sequence[int], batch_size: int
) -> Iterator[States]:
    return iterate_states(model, rows, sites, batch_size=batch_size)


def _points(
    model: nn.Module, rows: Sequence[Tensor], sites: Sequence[int], position: Position, batch_size: int
) -> dict[int, Tensor]:
    """One point per prompt and site: the picked token, or the mean of all: (prompts, H) float64."""
    found: dict[int, list[Tensor]] = {site: [] for site in sites}
    for states in _states(model, rows, sites, batch_size):
        for site in sites:
            found[site].append(pick(states[site], position).double().mean(dim=0))
    return {site: torch.stack(points) for site, points in found.items()}


def _direction(plus: Tensor, minus: Tensor, method: str, site: int) -> tuple[Tensor, float | None]:
    if method == "mean":
        return plus.mean(dim=0) - minus.mean(dim=0), None
    gaps = plus - minus
    cloud = gaps - gaps.mean(dim=0) if method == "pca_diff" else gaps / 2
    _, sizes, axes = torch.linalg.svd(cloud, full_matrices=False)
    power = sizes.square()
    if float(power.sum()) <= 1e-20 * float(plus.square().sum() + minus.square().sum()):
        cause = (
            "the differences do not vary"
            if method == "pca_diff"
            else "positive and negative states are equal"
        )
        raise LatentError(cause, where=f"{method}, layer {site}", fix="more varied pairs, or method='mean'")
    return _oriented(axes[0], gaps), float(power[0] / power.sum())


def _oriented(axis: Tensor, gaps: Tensor) -> Tensor:
    """Towards the side where most positives are beyond their negatives; on a tie, their average."""
    ahead = gaps @ axis
    votes = int((ahead > 0).sum()) - int((ahead < 0).sum())
    side = votes if votes else float(ahead.sum())
    return -axis if side < 0 else axis


def _scaled(vector: Tensor, hidden: float, norm: str, site: int) -> Tensor:
    """``none``: as it is; ``unit``: length 1; ``hidden``: the mean length of the states at that layer."""
    _choose(norm, NORMS, "norm")
    if norm == "none":
        return vector
    length = vector.norm()
    if length == 0:
        raise LatentError(
            "the states are equal: there is no direction", where=f"layer {site}", fix="norm='none'"
        )
    return vector / length * (1.0 if norm == "unit" else hidden)


def _choose(value: str, known: Sequence[str], what: str) -> None:
    if value not in known:
        raise LatentError(f"unknown {what} {value!r}", fix=did_you_mean(str(value), known))


def _check_pair(base: Any, donor: Any) -> None:
    for what in ("hidden_size", "num_hidden_layers"):
        mine, theirs = (getattr(m.config.get_text_config(decoder=True), what) for m in (base, donor))
        if mine != theirs:
            raise LatentError(f"{what} {theirs} in the donor", expected=f"the base's {mine}")


def _name(model: Any) -> str:
    return str(getattr(model.config, "_name_or_path", "") or "")


def _vector(model: Any, vectors: dict[int, Tensor], made: dict[str, Any]) -> SteeringVector:
    kind = str(model.config.get_text_config(decoder=True).model_type)
    return SteeringVector(vectors, len(decoder_layers(model)), _name(model), kind, made)
