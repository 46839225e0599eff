"""Applies one site or one steering vector to the tokens in scope, as a function of absolute token columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from smelt.core.errors import LatentError
from smelt.latent.gram import prompt_maps
from smelt.latent.operators import Weight, frechet, gram_mix, linear, slerp, wide
from smelt.latent.plan import ActiveSite
from smelt.latent.recipe import Steer

if TYPE_CHECKING:
    from smelt.latent.lockstep import Call

Origin = int | torch.Tensor | None


class Columns:
    """Which absolute columns a call covers, and where mixing starts.

    Questions that ints can answer are answered on the host; with static caches or per-row starts the answer
    stays a tensor on the device, so that nothing waits for it.
    """

    def __init__(
        self, past: int | torch.Tensor, shape: torch.Size, device: torch.device, origin: Origin, padding: Any
    ) -> None:
        self.past, self.rows, self.tokens, self.device = past, shape[0], shape[1], device
        self.origin = self._per_row(origin)
        self.padding = padding if isinstance(padding, torch.Tensor) and padding.ndim == 2 else None
        self._index: torch.Tensor | None = None

    def _per_row(self, origin: Origin) -> Origin:
        if not isinstance(origin, torch.Tensor):
            return origin
        if origin.ndim == 0:
            return origin
        return per_row(origin.to(self.device), self.rows, "mix_start")

    @property
    def index(self) -> torch.Tensor:
        """Absolute columns, (1, T)."""
        if self._index is None:
            self._index = (torch.arange(self.tokens, device=self.device) + self.past)[None]
        return self._index

    @property
    def relative(self) -> torch.Tensor:
        """Columns counted from the first mixed token, (1 or B, T)."""
        if self.origin is None:
            raise LatentError(
                "this needs to know where the prompt ends",
                where="scope 'generated' or a schedule",
                fix="pass mix_start=prompt_length - 1 to forward(); generate() does it by itself",
            )
        return self.index - self.origin

    def scope(self, scope: str) -> torch.Tensor | bool:
        """True (all), False (none) or a (1 or B, T, 1) mask of the tokens in scope."""
        if scope == "all":
            return True
        if isinstance(self.past, int) and isinstance(self.origin, int):
            if self.past >= self.origin:
                return True
            if self.past + self.tokens <= self.origin:
                return False
        return (self.relative >= 0).unsqueeze(-1)

    def first_token(self) -> torch.Tensor:
        """Column of each row's first real token, (1 or B, 1)."""
        if self.padding is None:
            return torch.zeros((1, 1), dtype=torch.long, device=self.device)
        return self.padding.long().argmax(-1, keepdim=True).to(self.device)


def per_row(values: torch.Tensor, rows: int, what: str) -> torch.Tensor:
    """One value per row as (B, ...); rows expanded by beams or return sequences are followed."""
    count = values.shape[0]
    if count != rows:
        if rows % count:
            raise LatentError(f"{what} has {count} rows for a batch of {rows}")
        values = values.repeat_interleave(rows // count, dim=0)
    return values[:, None] if values.ndim == 1 else values


def mix_site(
    active: ActiveSite, state: torch.Tensor, donors: list[torch.Tensor | None], call: Call
) -> torch.Tensor:
    """The base's state with the donors mixed in, in the base's dtype."""
    scope = call.columns.scope(call.plan.scope)
    gram = active.site.op == "regmean" and active.site.reading == "gram"
    if scope is False and not gram:
        return state
    base = wide(state)
    others = [base if donor is None else wide(donor.to(state.device)) for donor in donors]
    if gram:
        maps = prompt_maps(active, base, others, call)
        if scope is False:
            return state
        mixed = gram_mix(base, others, maps)
    else:
        mixed = _apply(active, base, others, _weights(active, base, others, call))
    mixed = mixed.to(state.dtype)
    return mixed if scope is True else torch.where(scope, mixed, state)  # type: ignore[arg-type]


def _apply(
    active: ActiveSite, base: torch.Tensor, donors: list[torch.Tensor], weights: list[Weight]
) -> torch.Tensor:
    if active.site.op != "slerp":
        return linear(base, donors, weights)
    if len(donors) == 1:
        return slerp(base, donors[0], weights[0])
    return frechet(base, donors, weights)


def _weights(active: ActiveSite, base: torch.Tensor, donors: list[torch.Tensor], call: Call) -> list[Weight]:
    """Coefficients: plain numbers where they are constant, (B or 1, T or 1, 1) tensors where not."""
    live = call.inputs.get("beta")
    weights: list[Weight] = list(active.coefs)
    if isinstance(live, torch.Tensor):
        weights = _live_weights(active, live.to(base), call.columns.rows, len(donors))
    schedule, gate = active.site.schedule, active.site.gate
    if schedule is not None and not schedule.varies:
        weights = [weight * schedule.start for weight in weights]
    elif schedule is not None:
        factor = schedule.factor(call.columns.relative).unsqueeze(-1).to(base)
        weights = [weight * factor for weight in weights]
    if gate is not None:
        weights = [w * gate.factor(base, donor) for w, donor in zip(weights, donors, strict=True)]
    return weights


def _live_weights(active: ActiveSite, beta: torch.Tensor, rows: int, donors: int) -> list[Weight]:
    if beta.ndim == 0:
        beta = beta.expand(1, 1)
    else:
        beta = per_row(beta, rows, "beta")
    columns = [beta[:, i, None, None] for i in range(beta.shape[1])]
    if active.site.op == "proxy":
        return [columns[0], -columns[0]]
    if len(columns) != donors:
        raise LatentError(
            f"beta has {len(columns)} columns for {donors} donors", expected="(B,) or (B, donors)"
        )
    return list(columns)


def steer_site(steer: Steer, state: torch.Tensor, columns: Columns) -> torch.Tensor:
    """``h + alpha * delta`` on the tokens in the steering's own scope."""
    assert steer.delta is not None
    base = wide(state)
    delta = steer.delta.to(base)
    if steer.scope == "first":
        added = _first_tokens(delta if delta.ndim == 2 else delta[None], columns)
        mask: torch.Tensor | bool = True
    else:
        mask = columns.scope(steer.scope)
        added = delta
    if mask is False:
        return state
    moved = base + steer.alpha * added
    if steer.keep_norm:
        size = torch.linalg.vector_norm(moved, dim=-1, keepdim=True).clamp(min=1e-30)
        moved = moved * torch.linalg.vector_norm(base, dim=-1, keepdim=True) / size
    moved = moved.to(state.dtype)
    return moved if mask is True else torch.where(mask, moved, state)


def _first_tokens(delta: torch.Tensor, columns: Columns) -> torch.Tensor:
    """Row t of ``delta`` at each row's t-th real token, zero elsewhere: (1 or B, T, H)."""
    offset = columns.index - columns.first_token()
    inside = (offset >= 0) & (offset < delta.shape[0])
    return delta[offset.clamp(0, delta.shape[0] - 1)] * inside.unsqueeze(-1)
