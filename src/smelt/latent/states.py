"""Hidden states of real tokens, prompt by prompt: what metrics compare and what steering vectors are made of.

Site L is the input of decoder layer L (0: embeddings); site n, of a model with n layers, is what the last
layer leaves, before the final norm.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from smelt.core.errors import LatentError
from smelt.latent.adapters import split_call, state_of
from smelt.latent.hooks import decoder_layers
from smelt.latent.prompts import Prompt, encode, pad, pad_id_of

States = dict[int, Tensor]  # site -> (T, H) float32 on the CPU


def check_sites(sites: Sequence[int] | None, depth: int, default: Sequence[int] | None = None) -> list[int]:
    """Sites as asked for, each within 0..depth; all of them when None."""
    if sites is None:
        return list(range(depth + 1) if default is None else default)
    for site in sites:
        if isinstance(site, bool) or not isinstance(site, int) or not 0 <= site <= depth:
            expected = f"a whole number from 0 (embeddings) to {depth} (before the final norm)"
            raise LatentError(f"site {site!r}", expected=expected)
    if len(set(sites)) != len(sites) or not sites:
        raise LatentError(f"sites {list(sites)}", expected="at least one site, each once")
    return list(sites)


@contextmanager
def record(layers: nn.ModuleList, sites: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Within the block, the state at each site in the latest forward: {site: (B, T, H)}."""
    seen: dict[int, Tensor] = {}

    def entering(site: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[site] = split_call(args, kwargs, f"layer {site}").detach()

        return hook

    def leaving(module: nn.Module, args: Any, output: Any) -> None:
        seen[len(layers)] = state_of(output).detach()

    with ExitStack() as stack:
        for site in sites:
            handle = (
                layers[-1].register_forward_hook(leaving)
                if site == len(layers)
                else layers[site].register_forward_pre_hook(entering(site), with_kwargs=True)
            )
            stack.callback(handle.remove)
        yield seen


def encode_all(tokenizer: Any, prompts: Sequence[Prompt]) -> list[Tensor]:
    """Token ids of each prompt; texts as they are, conversations without a generation prompt."""
    if isinstance(prompts, (str, Tensor)) or not prompts:
        raise LatentError("prompts must be a list with at least one prompt", fix="wrap a single one in [ ]")
    return [encode(tokenizer, prompt, add_generation_prompt=False) for prompt in prompts]


def _check_ids(rows: Sequence[Tensor], vocabulary: int) -> None:
    highest = max(int(row.max()) for row in rows)
    if highest >= vocabulary:
        advice = "base, donor and tokenizer must share one vocabulary"
        raise LatentError(f"token id {highest} in a model with {vocabulary} tokens", fix=advice)


@torch.no_grad()
def iterate_states(
    model: nn.Module,
    rows: Sequence[Tensor],
    sites: Sequence[int] | None = None,
    *,
    batch_size: int = 8,
    prompt_lengths: Sequence[int] | None = None,
    **forward: Any,
) -> Iterator[States]:
    """The states of each row of token ids in turn, padding removed; one batch is held at a time.

    ``model`` may be a plain model or a latent merge (the states of its base, blended). A merge that only
    blends what comes after the prompt needs ``prompt_lengths``, one per row. ``forward`` goes to every call.
    """
    layers = decoder_layers(model)
    wanted = check_sites(sites, len(layers))
    table = model.get_input_embeddings().weight  # type: ignore[operator]
    _check_ids(rows, len(table))
    extra = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        ids, mask = pad(batch, pad_id_of(None, getattr(model, "config", None)), side="right")
        call = {
            "input_ids": ids.to(table.device),
            "attention_mask": mask.to(table.device),
            "use_cache": False,
        }
        if prompt_lengths is not None:
            call["mix_start"] = torch.tensor(prompt_lengths[start : start + batch_size]).to(table.device) - 1
        with record(layers, wanted) as seen:
            model(**call, **extra, **forward)
        for index, row in enumerate(batch):
            yield {site: seen[site][index, : len(row)].float().cpu() for site in wanted}


def collect_states(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    sites: Sequence[int] | None = None,
    *,
    batch_size: int = 8,
    **forward: Any,
) -> list[States]:
    """The states of every prompt at every site, all held in memory: see ``iterate_states`` for long lists."""
    rows = encode_all(tokenizer, prompts)
    return list(iterate_states(model, rows, sites, batch_size=batch_size, **forward))
