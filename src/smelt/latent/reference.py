"""The reference's functions: messages in, text out, with a base and donors blended, steered or averaged.

They return the new text only (``include_prompt=True``: the whole text, as the published code did), for one
conversation or a list of them. All take the same keywords: ``max_new_tokens, top_p, temperature, seed,
eos_token_id, include_prompt, template`` as in ``Decoding``, and anything ``generate()`` takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from smelt.core.errors import LatentError
from smelt.latent.answering import Answer, Decoding, answer
from smelt.latent.ensemble import LogitMix
from smelt.latent.hooks import sanitize_layers
from smelt.latent.interventions import Session
from smelt.latent.mixers import checked_deltas, donor_list, mix_site, regmean_site, scope_of, steers
from smelt.latent.schedule import Schedule
from smelt.latent.steering import SteeringVector
from smelt.latent.wrapping import wrap, wrap_ensemble

BetaSchedule = Callable[[int, int], float]


def chat_generate(
    model: nn.Module,
    tokenizer: Any,
    messages: Any,
    max_new_tokens: int = 512,
    top_p: float = 0.9,
    temperature: float = 1.0,
    **more: Any,
) -> Answer:
    """One model by itself, decoded exactly like the blends: the baseline to compare with.

    Mixers and steerers attached to the model act, as they do in its own ``generate``.
    """
    how, generate = _decoding(max_new_tokens, top_p, temperature, more)
    session = Session.active(model)
    if session is None:
        return answer(wrap(model, (), tokenizer), model, tokenizer, messages, how, generate)
    wrapper = session.wrapper()
    with session.inside():
        return answer(wrapper, model, tokenizer, messages, how, {**generate, **session.settings(wrapper)})


def latent_mix_generate(
    base_model: nn.Module,
    ft_model: nn.Module,
    tokenizer: Any,
    messages: Any,
    mix_layer: int | Sequence[int] = 20,
    beta: float = 0.5,
    mode: str | None = None,
    max_new_tokens: int = 512,
    top_p: float = 0.9,
    temperature: float = 1.0,
    *,
    mix_mode: str | None = None,
    last_token_only: bool = True,
    **more: Any,
) -> Answer:
    """Text from the base with the donor's state blended in before ``mix_layer`` (one layer, or several).

    ``mode`` (or ``mix_mode``, the same): ``slerp`` (default), ``lerp`` or ``task_vector``. ``beta`` 0 is the
    base. ``last_token_only``: blend the last prompt token and all new ones; otherwise the whole prompt too.
    """
    how, generate = _decoding(max_new_tokens, top_p, temperature, more)
    chosen = _one_of("mode", mode, "mix_mode", mix_mode) or "slerp"
    sites = [mix_site(layer, chosen, float(beta)) for layer in _layers(base_model, mix_layer)]
    _refuse_attached(base_model, ft_model)
    merged = wrap(base_model, (ft_model,), tokenizer)
    generate = {**generate, "sites": sites, "scope": scope_of(last_token_only)}
    return answer(merged, base_model, tokenizer, messages, how, generate)


def latent_regmean_generate(
    base_model: nn.Module,
    ft_models: nn.Module | Sequence[nn.Module],
    tokenizer: Any,
    messages: Any,
    mix_layer: int | Sequence[int] | None = None,
    lambda_reg: float | None = None,
    ft_weights: Sequence[float] | None = None,
    last_token_only: bool = True,
    max_new_tokens: int = 512,
    top_p: float = 0.9,
    temperature: float = 1.0,
    *,
    mix_layers: Sequence[int] | None = None,
    alpha: float | None = None,
    **more: Any,
) -> Answer:
    """Text from the base pulled towards the weighted mean of one or more donors, at one layer or several.

    The ratio of the donors is ``1 / (1 + lambda_reg)``; say it directly with ``alpha``. The default is one
    half, at layer 20.
    """
    how, generate = _decoding(max_new_tokens, top_p, temperature, more)
    donors = donor_list(ft_models)
    where = _one_of("mix_layer", mix_layer, "mix_layers", mix_layers)
    strength = _shrinkage(lambda_reg, alpha)
    layers = _layers(base_model, 20 if where is None else where)
    sites = [regmean_site(layer, strength, ft_weights, len(donors)) for layer in layers]
    _refuse_attached(base_model, *donors)
    merged = wrap(base_model, donors, tokenizer)
    generate = {**generate, "sites": sites, "scope": scope_of(last_token_only)}
    return answer(merged, base_model, tokenizer, messages, how, generate)


def delta_generate(
    base_model: nn.Module,
    tokenizer: Any,
    deltas: Mapping[int, Tensor] | SteeringVector,
    messages: Any,
    alpha: float = 0.10,
    apply_to_all_tokens: bool = True,
    max_new_tokens: int = 512,
    top_p: float = 0.9,
    temperature: float = 1.0,
    *,
    keep_norm: bool = False,
    **more: Any,
) -> Answer:
    """Text from the base with ``alpha * deltas[L]`` added to the state before each layer L."""
    how, generate = _decoding(max_new_tokens, top_p, temperature, more)
    _refuse_attached(base_model)
    vectors = checked_deltas(base_model, deltas)
    generate = {**generate, "steer": steers(vectors, float(alpha), apply_to_all_tokens, keep_norm)}
    return answer(wrap(base_model, (), tokenizer), base_model, tokenizer, messages, how, generate)


def ensemble_generate(
    base_model: nn.Module,
    ft_model: nn.Module,
    tokenizer: Any,
    messages: Any,
    beta: float | BetaSchedule = 0.5,
    beta_schedule: BetaSchedule | None = None,
    max_new_tokens: int = 512,
    top_p: float = 0.9,
    temperature: float = 1.0,
    *,
    op: str = "logits",
    **more: Any,
) -> Answer:
    """Text from both models in full, averaged at the logits: ``(1 - beta) * base + beta * donor``.

    ``beta``, or ``beta_schedule``, may be a function of (step, max_new_tokens). ``op``: ``logits`` (as
    published), ``logprobs`` or ``probs``.
    """
    how, generate = _decoding(max_new_tokens, top_p, temperature, more)
    _refuse_attached(base_model, ft_model)
    mix = _logit_mix(op, beta_schedule or beta, how.max_new_tokens)
    ensemble = wrap_ensemble([base_model, ft_model], mix, tokenizer)
    return answer(ensemble, base_model, tokenizer, messages, how, generate)


@dataclass(frozen=True, slots=True)
class StepTable(Schedule):
    """A schedule written out step by step; the last value holds from there on."""

    table: tuple[float, ...] = ()

    @property
    def varies(self) -> bool:
        """Always: equal values are allowed."""
        return True

    def factor(self, index: Tensor) -> Tensor:
        """The entry for each token index."""
        values = torch.tensor(self.table, dtype=torch.float32, device=index.device)
        return values[index.clamp(0, len(self.table) - 1)]


def _logit_mix(op: str, beta: float | BetaSchedule, steps: int) -> LogitMix:
    if op not in ("logits", "logprobs", "probs"):
        raise LatentError(f"unknown op {op!r}", expected="logits, logprobs or probs")
    table = tuple(float(beta(step, steps)) for step in range(steps)) if callable(beta) else (float(beta),)
    wrong = [value for value in table if not math.isfinite(value)]
    if wrong:
        raise LatentError(f"beta is {wrong[0]}", expected="finite ratios")
    if callable(beta):
        return LogitMix(op, (0.0, 1.0), schedule=StepTable("step", table=table))
    return LogitMix(op, (1 - table[0], table[0]))


def _decoding(
    max_new_tokens: int, top_p: float, temperature: float, more: dict[str, Any]
) -> tuple[Decoding, dict[str, Any]]:
    """The keywords of every function, split into how to decode and what ``generate()`` gets."""
    own = {item.name for item in fields(Decoding)}
    for reserved in ("sites", "scope", "steer", "generation_config"):
        if reserved in more:
            fix = "use LatentMergedForCausalLM.generate for full control"
            raise LatentError(f"{reserved} cannot be given here", fix=fix)
    chosen = {name: value for name, value in more.items() if name in own}
    how = Decoding(max_new_tokens, top_p, temperature, **chosen)
    return how, {name: value for name, value in more.items() if name not in own}


def _refuse_attached(*models: nn.Module) -> None:
    """A mixer of the caller's would act on top of the function's own."""
    for model in models:
        session = Session.active(model)
        if session is not None:
            what = f"a model has {', '.join(session.names())} attached"
            raise LatentError(
                what, fix="remove() it first, or attach all that should act and use chat_generate"
            )


def _one_of(first: str, one: Any, second: str, other: Any) -> Any:
    if one is not None and other is not None and one != other:
        raise LatentError(
            f"{first}={one!r} and {second}={other!r}", expected="one of them: they mean the same"
        )
    return other if one is None else one


def _layers(model: nn.Module, layers: int | Sequence[int]) -> list[int]:
    wanted = list(layers) if isinstance(layers, Sequence) else [layers]
    found, _ = sanitize_layers(model, wanted, final=True)
    if not found:
        raise LatentError("no layer to mix at", expected="at least one")
    return found


def _shrinkage(lambda_reg: float | None, alpha: float | None) -> float:
    """Lambda, given as such or as the donors' ratio alpha = 1 / (1 + lambda)."""
    if alpha is None:
        return 1.0 if lambda_reg is None else float(lambda_reg)
    if lambda_reg is not None:
        raise LatentError("lambda_reg and alpha", expected="one of them: alpha is 1 / (1 + lambda_reg)")
    if not 0 < alpha <= 1:
        raise LatentError(f"alpha={alpha}", expected="a ratio above 0 and at most 1")
    return 1 / alpha - 1
