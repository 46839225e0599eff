"""Ratios that change while a text grows: functions of the token index, never of a call count, so cached and
uncached runs agree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from smelt.core.errors import LatentError, did_you_mean

KINDS = ("constant", "linear", "cosine", "step")


@dataclass(frozen=True, slots=True)
class Schedule:
    """A factor on a site's weights: ``start`` at the first mixed token, ``end`` after ``steps`` tokens.

    With weights ``[1.0]`` the factor is the ratio itself.

    >>> ramp = Schedule("linear", start=0.0, end=1.0, steps=4)
    >>> [round(ramp.at(t), 2) for t in range(6)]
    [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """

    kind: str = "constant"
    start: float = 1.0
    end: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise LatentError(f"unknown schedule {self.kind!r}", fix=did_you_mean(str(self.kind), KINDS))
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise LatentError(
                f"schedule steps is {self.steps!r}", expected="a whole number of tokens, at least 1"
            )
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise LatentError(f"schedule goes from {self.start} to {self.end}", expected="finite factors")

    @property
    def varies(self) -> bool:
        """Whether the factor depends on the token at all."""
        return self.kind != "constant" and self.start != self.end

    def factor(self, index: torch.Tensor) -> torch.Tensor:
        """The factor for token indices counted from the first mixed token; earlier tokens count as 0."""
        t = index.clamp(min=0).to(torch.float32)
        if not self.varies:
            return torch.full_like(t, self.start)
        if self.kind == "step":
            return torch.where(t < self.steps, self.start, self.end)
        part = (t / self.steps).clamp(max=1.0)
        if self.kind == "cosine":
            part = (1 - torch.cos(math.pi * part)) / 2
        return self.start + (self.end - self.start) * part

    def at(self, index: int) -> float:
        """The factor for one token index."""
        return float(self.factor(torch.tensor([index]))[0])

    def to_dict(self) -> dict[str, Any]:
        """As it is written in a recipe."""
        return {"kind": self.kind, "start": self.start, "end": self.end, "steps": self.steps}


@dataclass(frozen=True, slots=True)
class Gate:
    """A factor from the states themselves: 0 below cosine ``low``, 1 above ``high``, linear between.

    ``invert`` mixes where the models disagree instead of where they agree.
    """

    low: float = 0.0
    high: float = 1.0
    invert: bool = False

    def __post_init__(self) -> None:
        if not -1.0 <= self.low < self.high <= 1.0:
            raise LatentError(f"gate from {self.low} to {self.high}", expected="-1 <= low < high <= 1")

    def factor(self, base: torch.Tensor, donor: torch.Tensor) -> torch.Tensor:
        """The factor per token, shape (..., 1), from float32 states."""
        cosine = torch.nn.functional.cosine_similarity(base, donor, dim=-1).unsqueeze(-1)
        part = ((cosine - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
        return 1 - part if self.invert else part

    def to_dict(self) -> dict[str, Any]:
        """As it is written in a recipe."""
        return {"low": self.low, "high": self.high, "invert": self.invert}
