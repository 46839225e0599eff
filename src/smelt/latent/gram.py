"""RegMean in latent space: Gram matrices of the states at a site, from the prompt at hand or from
calibration text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from smelt.core.errors import LatentError
from smelt.latent.operators import gram_solve
from smelt.latent.plan import ActiveSite

if TYPE_CHECKING:
    from smelt.latent.lockstep import Call


def prompt_maps(
    active: ActiveSite, base: torch.Tensor, donors: list[torch.Tensor], call: Call
) -> list[torch.Tensor]:
    """The maps P_i of a gram site: calibrated ones if the model holds them, else from the prompt's own
    tokens."""
    shares = (1 - sum(active.coefs), *active.coefs)
    site = active.site
    if site.gram == "calibrated":
        stored = call.grams.get(f"gram.{active.layer}")
        if stored is None:
            raise LatentError(
                f"no Gram matrices for layer {active.layer}", fix="model.calibrate_gram(batches) first"
            )
        grams = [share * gram.to(base) for share, gram in zip(shares, stored, strict=True)]
        return gram_solve(grams, site.lam, site.alpha)
    if call.plan.scope != "generated":
        raise LatentError(
            "a Gram matrix from the prompt needs scope='generated': inside the prompt it would look ahead",
            where=f"site at layer {active.layer}",
            fix="scope='generated', or gram='calibrated'",
        )
    seen = _prompt_grams(active.layer, base, donors, call)
    return gram_solve([share * gram for share, gram in zip(shares, seen, strict=True)], site.lam, site.alpha)


def _prompt_grams(
    layer: int, base: torch.Tensor, donors: list[torch.Tensor], call: Call
) -> list[torch.Tensor]:
    """Per row Σ hᵀh over real prompt tokens, summed over the chunks of a prefill and kept beside the
    cache."""
    columns = call.columns
    memory: dict[int, list[torch.Tensor]] = {}
    if call.flat is not None:
        memory = call.flat.__dict__.setdefault("_smelt_grams", {})
    done = isinstance(columns.past, int) and isinstance(columns.origin, int) and columns.past > columns.origin
    if done and layer in memory:
        return memory[layer]
    keep = columns.relative <= 0
    if columns.padding is not None:
        keep = keep & columns.padding.bool().gather(1, columns.index.expand(columns.rows, -1))
    fresh = [_gram(state, keep) for state in (base, *donors)]
    if layer in memory:
        fresh = [old + new for old, new in zip(memory[layer], fresh, strict=True)]
    memory[layer] = fresh
    return fresh


def _gram(state: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    rows = state * keep.unsqueeze(-1)
    return rows.transpose(-1, -2) @ rows
