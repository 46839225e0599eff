"""Messages in, new text out: one way to generate for every reference function, so that comparisons are fair.

The same sampler and stop tokens, and none of the checkpoint's own sampling settings, whatever is blended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from smelt.core.errors import LatentError
from smelt.latent.prompts import as_batch, encode, pad, pad_id_of
from smelt.latent.sampling import NucleusProcessor, check_sampling
from smelt.latent.wrapping import configured

Answer = str | list[str]


@dataclass(frozen=True)
class Decoding:
    """How to draw tokens and when to stop.

    ``seed``: an int (row r of a batch uses seed + r) or one per row; None draws from torch's global state.
    ``eos_token_id``: None takes every stop token of the base's generation config and the tokenizer.
    ``include_prompt``: return the whole text, prompt included, as the published code did.
    """

    max_new_tokens: int = 512
    top_p: float = 0.9
    temperature: float = 1.0
    seed: int | Sequence[int] | None = None
    eos_token_id: int | Sequence[int] | None = None
    include_prompt: bool = False
    template: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_sampling(self.top_p, self.temperature)
        if isinstance(self.max_new_tokens, bool) or not isinstance(self.max_new_tokens, int):
            raise LatentError(f"max_new_tokens={self.max_new_tokens!r}", expected="a whole number")
        if self.max_new_tokens < 1:
            raise LatentError(f"max_new_tokens={self.max_new_tokens}", expected="at least 1")


def answer(
    model: Any, base: Any, tokenizer: Any, messages: Any, how: Decoding, generate: Mapping[str, Any]
) -> Answer:
    """Generate with ``model`` (a wrapper over ``base``): a string, or a list for a list of prompts.

    ``messages`` is a conversation, a plain string, or a list of either. ``generate`` goes to ``generate()``.
    """
    prompts, several = as_batch(messages)
    rows = [encode(tokenizer, prompt, **how.template) for prompt in prompts]
    ids, mask = pad(rows, pad_id_of(tokenizer, base.config))
    options = dict(generate)
    processors = LogitsProcessorList(options.pop("logits_processor", None) or [])
    if how.temperature > 0:
        _check_search(options)
        processors.append(NucleusProcessor(how.top_p, how.temperature, how.seed))
    device = base.get_input_embeddings().weight.device
    output = configured(model, _plain_config(base, tokenizer, how)).generate(
        ids.to(device), attention_mask=mask.to(device), logits_processor=processors, **options
    )
    texts = _texts(
        tokenizer, getattr(output, "sequences", output).cpu(), rows, ids.shape[1], how.include_prompt
    )
    return texts if several or len(texts) > 1 else texts[0]


def _check_search(options: Mapping[str, Any]) -> None:
    if options.get("num_beams", 1) != 1 or options.get("do_sample"):
        fix = "set temperature=0 for beam search, and leave do_sample out"
        raise LatentError("sampling here draws its own tokens", expected="one beam and no do_sample", fix=fix)


def _plain_config(base: Any, tokenizer: Any, how: Decoding) -> GenerationConfig:
    """Nothing of the checkpoint's generation config but its stop tokens."""
    stops = stop_tokens(base, tokenizer) if how.eos_token_id is None else _ids(how.eos_token_id)
    return GenerationConfig(
        max_new_tokens=how.max_new_tokens,
        do_sample=False,
        eos_token_id=stops or None,
        pad_token_id=pad_id_of(tokenizer, base.config),
    )


def stop_tokens(base: Any, tokenizer: Any) -> list[int]:
    """Every id that ends a text: those in the base's generation config, and the tokenizer's."""
    config = getattr(base, "generation_config", None)
    return sorted(
        {*_ids(getattr(config, "eos_token_id", None)), *_ids(getattr(tokenizer, "eos_token_id", None))}
    )


def _ids(value: Any) -> list[int]:
    if isinstance(value, Tensor):
        value = value.reshape(-1).tolist()
    return [] if value is None else [value] if isinstance(value, int) else [int(one) for one in value]


def _texts(
    tokenizer: Any, output: torch.Tensor, rows: Sequence[Tensor], width: int, include_prompt: bool
) -> list[str]:
    copies = len(output) // len(rows)
    texts = []
    for index, sequence in enumerate(output):
        prompt = len(rows[index // copies]) if include_prompt else 0
        texts.append(tokenizer.decode(sequence[width - prompt :], skip_special_tokens=True))
    return texts
