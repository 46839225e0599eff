"""A linear map from a donor's hidden size to the base's, fitted by ridge regression on paired states."""

from __future__ import annotations

import torch

from smelt.core.errors import LatentError


class Projection:
    """``h_base ≈ h_donor @ weight + bias``."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, state: torch.Tensor) -> torch.Tensor:
        weight, bias = self.weight.to(state.device, torch.float32), self.bias.to(state.device, torch.float32)
        return state.float() @ weight + bias

    @classmethod
    def fit(cls, donor: torch.Tensor, base: torch.Tensor, ridge: float = 1e-3) -> Projection:
        """Least squares with a ridge relative to the donor's mean variance; states are (tokens, width).

        >>> x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
        >>> y = x @ torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]) + 1.0
        >>> torch.allclose(Projection.fit(x, y, ridge=1e-9)(x), y, atol=1e-4)
        True
        """
        if donor.shape[0] != base.shape[0] or donor.shape[0] < 2:
            raise LatentError(
                f"{donor.shape[0]} donor states and {base.shape[0]} base states",
                expected="the same tokens through both models, at least two",
            )
        x, y = donor.double(), base.double()
        mean_x, mean_y = x.mean(0), y.mean(0)
        x, y = x - mean_x, y - mean_y
        gram = x.T @ x
        scale = gram.diagonal().mean().clamp(min=1e-30)
        weight = torch.linalg.solve(gram + ridge * scale * torch.eye(len(gram), dtype=gram.dtype), x.T @ y)
        return cls(weight.float(), (mean_y - mean_x @ weight).float())
