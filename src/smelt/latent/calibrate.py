"""What needs a few example texts: projections for donors of another width, Gram matrices for RegMean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from smelt.core.errors import LatentError
from smelt.latent.adapters import Decoder, find_decoder
from smelt.latent.plan import resolve_layer
from smelt.latent.projection import Projection
from smelt.latent.recipe import Settings
from smelt.latent.tower import TowerRunner


def batches_of(calibration: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(ids, mask) pairs from id tensors, tokenizer outputs, or an iterable of either."""
    items = (
        [calibration]
        if isinstance(calibration, torch.Tensor) or hasattr(calibration, "keys")
        else calibration
    )
    pairs = []
    for item in items:
        ids = item if isinstance(item, torch.Tensor) else item["input_ids"]
        mask = None if isinstance(item, torch.Tensor) else item.get("attention_mask")
        ids = ids if ids.ndim == 2 else ids[None]
        pairs.append((ids, torch.ones_like(ids) if mask is None else mask))
    if not pairs:
        raise LatentError("no calibration tokens", expected="token id tensors or tokenizer outputs")
    return pairs


@torch.no_grad()
def states_at(
    decoder: Decoder, layers: Iterable[int], batches: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> Any:
    """{layer: (tokens, width)} float32 states of a tower run by itself, padding left out."""
    wanted = sorted(set(layers))
    runner = TowerRunner(decoder)
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in wanted}
    device = decoder.embed.weight.device
    for ids, mask in batches:
        call: dict[str, Any] = {
            "input_ids": ids.to(device),
            "attention_mask": mask.to(device),
            "use_cache": False,
        }
        call["position_ids"] = (call["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        states = runner.states(wanted[-1], call)
        for layer in wanted:
            found[layer].append(states[layer][mask.to(device).bool()].float())
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def donor_layer(layer: int, base_depth: int, full_depth: int) -> int:
    """The donor layer at the same relative depth."""
    return layer if base_depth == full_depth else round(layer * full_depth / base_depth)


def fit_projections(
    base: Any, donors: Sequence[Any], settings: Settings, calibration: Any, depths: Sequence[int | None] |
    None = None, ridge: float = 1e-3,
) -> dict[int, dict[int, Projection]]:  # fmt: skip
    """A projection per site for every donor whose hidden size is not the base's."""
    home, batches = find_decoder(base, "base"), batches_of(calibration)
    layers = [(resolve_layer(site.layer, home.depth), site.donor_layers) for site in settings.sites]
    found: dict[int, dict[int, Projection]] = {}
    for index, model in enumerate(donors):
        tower = find_decoder(model, f"donor {index}")
        if tower.width == home.width or not layers:
            continue
        full = (depths[index] if depths else None) or tower.depth
        pairs = {
            layer: donor_layer(layer, home.depth, full) if chosen is None else chosen[index]
            for layer, chosen in layers
        }
        mine, theirs = states_at(home, pairs, batches), states_at(tower, pairs.values(), batches)
        found[index] = {
            layer: Projection.fit(theirs[other], mine[layer], ridge) for layer, other in pairs.items()
        }
    return found


def calibrate_gram(model: Any, calibration: Any) -> None:
    """Store, for every gram site of the model, the mean Gram matrix of base and donors on the calibration
    tokens."""
    batches = batches_of(calibration)
    home = model.tower(-1)
    layers = [
        resolve_layer(site.layer, home.depth)
        for site in model.settings.sites
        if site.op == "regmean" and site.reading == "gram"
    ]
    if not layers:
        raise LatentError(
            "no site wants Gram matrices", fix="Site(layer, 'regmean', reading='gram', gram='calibrated')"
        )
    mine = states_at(home, layers, batches)
    for layer in layers:
        states = [mine[layer]]
        for tower in model._towers:
            other = donor_layer(layer, home.depth, tower.full_depth) if tower.engine == "tower" else layer
            state = states_at(tower.decoder, [other], batches)[other]
            projection = tower.projections.get(layer)
            states.append(state if projection is None else projection(state))
        model.tensors[f"gram.{layer}"] = torch.stack([state.T @ state / len(state) for state in states])
