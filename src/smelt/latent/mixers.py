"""The reference's classes: mixers and steerers that act on a base model while they are attached to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from smelt.core.errors import LatentError, did_you_mean
from smelt.latent.hooks import sanitize_layers
from smelt.latent.interventions import Intervention, Wish
from smelt.latent.recipe import Site, Steer
from smelt.latent.steering import SteeringVector

MIX_MODES = ("lerp", "slerp", "task_vector")


class LayerLatentMixer(Intervention):
    """Blends the state of ``ft_model`` into ``base_model`` before layer ``layer_idx``, at ratio ``beta``.

        mixer = LayerLatentMixer(base, ft, layer_idx=20, beta=0.5, mix_mode="slerp")
        output = base.generate(...)
        mixer.remove()

    or, safe against exceptions, ``with LayerLatentMixer(...): base.generate(...)``. While it is attached,
    calling the base runs the donor in step: it needs no call of its own. ``layer_idx`` n means before the
    final norm. ``last_token_only`` mixes the last prompt token and all generated ones, by absolute position;
    otherwise every token. ``beta``, ``mix_mode`` and ``last_token_only`` may be changed while attached.
    """

    def __init__(
        self,
        base_model: nn.Module,
        ft_model: nn.Module,
        layer_idx: int,
        beta: float = 0.5,
        last_token_only: bool = True,
        mix_mode: str = "lerp",
    ) -> None:
        self.base_model, self.ft_model = base_model, ft_model
        self.layer_idx = one_layer(base_model, layer_idx)
        self.beta = float(beta)
        self.last_token_only = last_token_only
        self.mix_mode = mix_mode
        super().__init__(base_model)

    def wish(self) -> Wish:
        """One site over one donor."""
        site = mix_site(self.layer_idx, self.mix_mode, self.beta)
        return Wish((self.ft_model,), (site,), scope=scope_of(self.last_token_only))


class LayerLatentRegMeanMixer(Intervention):
    """Pulls the base towards the mean of several donors: ratio ``1 / (1 + lambda_reg)``, donors by weight."""

    def __init__(
        self,
        base_model: nn.Module,
        ft_models: nn.Module | Sequence[nn.Module],
        layer_idx: int,
        lambda_reg: float = 1.0,
        ft_weights: Sequence[float] | None = None,
        last_token_only: bool = True,
    ) -> None:
        self.base_model = base_model
        self.ft_models = donor_list(ft_models)
        self.layer_idx = one_layer(base_model, layer_idx)
        self.lambda_reg = float(lambda_reg)
        self.ft_weights = ft_weights
        self.last_token_only = last_token_only
        super().__init__(base_model)

    def wish(self) -> Wish:
        """One site over all donors."""
        site = regmean_site(self.layer_idx, self.lambda_reg, self.ft_weights, len(self.ft_models))
        return Wish(self.ft_models, (site,), scope=scope_of(self.last_token_only))


class ActivationSteerer(Intervention):
    """Adds ``alpha * deltas[L]`` to the state before layer L, for every L in ``deltas``.

        steerer = ActivationSteerer(model, {20: delta}, alpha=0.1)
        output = model.generate(...)
        steerer.remove()

    or ``with ActivationSteerer(...)``. ``deltas`` is a dict or a ``SteeringVector``; a vector (T, H) goes to
    the first T tokens of a prompt. ``apply_to_all_tokens=False`` steers the last prompt token and all
    generated ones. ``keep_norm`` gives each state its length back. ``alpha`` may be changed while attached.
    """

    def __init__(
        self,
        model: nn.Module,
        deltas: Mapping[int, Tensor] | SteeringVector,
        alpha: float = 0.10,
        apply_to_all_tokens: bool = True,
        *,
        keep_norm: bool = False,
    ) -> None:
        self.model = model
        self.alpha = float(alpha)
        self.apply_to_all_tokens = apply_to_all_tokens
        self.keep_norm = keep_norm
        self.deltas = checked_deltas(model, deltas)
        self._steers: tuple[object, tuple[Steer, ...]] = (None, ())
        super().__init__(model)

    def wish(self) -> Wish:
        """One steering per layer; the same objects as long as nothing changes."""
        state = (self.alpha, self.apply_to_all_tokens, self.keep_norm)
        if self._steers[0] != state:
            self._steers = (state, steers(self.deltas, *state))
        return Wish(steer=self._steers[1])


def steers(
    deltas: Mapping[int, Tensor], alpha: float, apply_to_all_tokens: bool = True, keep_norm: bool = False
) -> tuple[Steer, ...]:
    """Deltas as the steering of a latent merge."""
    found = []
    for layer, delta in deltas.items():
        scope = "first" if delta.ndim == 2 else "all" if apply_to_all_tokens else "generated"
        found.append(Steer(layer, delta, alpha, scope, keep_norm))
    return tuple(found)


def checked_deltas(model: nn.Module, deltas: Mapping[int, Tensor] | SteeringVector) -> dict[int, Tensor]:
    """Deltas in float32 on the model's device; a layer or size that does not fit is an error."""
    vector = deltas if isinstance(deltas, SteeringVector) else SteeringVector(deltas)
    sanitize_layers(model, vector.layers, final=True)
    vector.check_fits(model)
    device = next(model.parameters()).device
    return {layer: delta.to(device=device, dtype=torch.float32) for layer, delta in vector.vectors.items()}


def scope_of(last_token_only: bool) -> str:
    """The reference's flag as the scope of a latent merge."""
    return "generated" if last_token_only else "all"


def one_layer(model: nn.Module, layer: int) -> int:
    """A layer 0..n of the model, else a LatentError."""
    return sanitize_layers(model, [layer], final=True)[0][0]


def mix_site(layer: int, mode: str, beta: float) -> Site:
    """A site for one donor."""
    if mode not in MIX_MODES:
        raise LatentError(f"unknown mix_mode {mode!r}", fix=did_you_mean(str(mode), MIX_MODES))
    return Site(layer, mode, (beta,))


def regmean_site(layer: int, lambda_reg: float, ft_weights: Sequence[float] | None, donors: int) -> Site:
    """A shrinking RegMean site: the donors' weighted mean at ratio 1 / (1 + lambda)."""
    weights = tuple(ft_weights) if ft_weights is not None else (1.0,) * donors
    if len(weights) != donors:
        raise LatentError(f"{len(weights)} ft_weights for {donors} models", expected="one weight per model")
    return Site(layer, "regmean", weights, lam=lambda_reg)


def donor_list(models: nn.Module | Sequence[nn.Module]) -> tuple[nn.Module, ...]:
    """One model or several, as a tuple."""
    found = (models,) if isinstance(models, nn.Module) else tuple(models)
    if not found:
        raise LatentError("no donor model", expected="at least one")
    return found
