"""Prompts to token ids: chat templates, raw text, batches and padding, the same way for every latent tool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding

from smelt.core.errors import LatentError

Messages = Sequence[Mapping[str, Any]]
Prompt = str | Messages | Tensor


def is_conversation(prompt: object) -> bool:
    """Whether ``prompt`` is one list of chat messages."""
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def encode(tokenizer: Any, prompt: Prompt, *, add_generation_prompt: bool = True, **template: Any) -> Tensor:
    """Token ids (T,) of one prompt: a conversation goes through the chat template, text is taken as it is.

    A template writes its own special tokens, so none are added a second time.
    """
    if isinstance(prompt, Tensor):
        ids = prompt.reshape(-1)
    elif isinstance(prompt, str):
        ids = torch.tensor(tokenizer(prompt)["input_ids"], dtype=torch.long)
    else:
        ids = _templated(tokenizer, prompt, add_generation_prompt, template)
    if ids.numel() == 0:
        raise LatentError("the prompt has no tokens", fix="pass some text or messages")
    return ids


def _templated(
    tokenizer: Any, messages: Messages, generation_prompt: bool, template: dict[str, Any]
) -> Tensor:
    _check_messages(messages)
    if not (getattr(tokenizer, "chat_template", None) or template.get("chat_template")):
        advice = "pass the prompt as a plain string, or set tokenizer.chat_template"
        raise LatentError("the tokenizer has no chat template", where=_name(tokenizer), fix=advice)
    encoded = tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=generation_prompt, tokenize=True, return_dict=True, **template
    )
    return torch.tensor(encoded["input_ids"], dtype=torch.long)


def _check_messages(messages: Messages) -> None:
    if not is_conversation(messages):
        found = f"{type(messages).__name__} is not a prompt"
        raise LatentError(found, expected="a string or a list of {'role': ..., 'content': ...}")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message:
            raise LatentError(
                "a message without 'role'", where=f"messages[{index}]", expected="role and content"
            )


def _name(tokenizer: Any) -> str:
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


def as_batch(messages: Any) -> tuple[list[Prompt], bool]:
    """A list of prompts, and whether the caller gave several.

    >>> as_batch("hello")
    (['hello'], False)
    >>> as_batch(["a", "b"])[1]
    True
    """
    if isinstance(messages, (str, Tensor)) or is_conversation(messages):
        return [messages], False
    if not isinstance(messages, Sequence) or not messages:
        _check_messages(messages)
    return list(messages), True


def pad_id_of(tokenizer: Any, config: Any = None) -> int:
    """An id to fill short rows with. Padding is masked, so any id inside the vocabulary will do."""
    for owner, key in ((tokenizer, "pad_token_id"), (config, "pad_token_id"), (tokenizer, "eos_token_id")):
        value = getattr(owner, key, None)
        if isinstance(value, int):
            return value
    return 0


def pad(rows: Sequence[Tensor], pad_id: int, side: str = "left") -> tuple[Tensor, Tensor]:
    """Rows of ids to one batch: ids and mask, both (B, T).

    >>> ids, mask = pad([torch.tensor([5, 6]), torch.tensor([7])], pad_id=0)
    >>> ids.tolist(), mask.tolist()
    ([[5, 6], [0, 7]], [[1, 1], [0, 1]])
    """
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[index, place] = row
        mask[index, place] = 1
    return ids, mask


def apply_chat_template(
    tokenizer: Any,
    messages: Any,
    add_generation_prompt: bool = True,
    return_tensors: str | None = "pt",
    device: torch.device | str | None = None,
    **template: Any,
) -> BatchEncoding:
    """``input_ids`` and ``attention_mask`` (B, T) of one conversation or a list of them, padded on the left.

    Other keywords reach the template (``enable_thinking=False``, ``tools=...``).
    """
    batch, _ = as_batch(messages)
    rows = [encode(tokenizer, one, add_generation_prompt=add_generation_prompt, **template) for one in batch]
    ids, mask = pad(rows, pad_id_of(tokenizer))
    if return_tensors == "pt":
        return BatchEncoding({"input_ids": ids.to(device), "attention_mask": mask.to(device)})
    if return_tensors == "np":
        return BatchEncoding({"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    if return_tensors is None:
        return BatchEncoding({"input_ids": ids.tolist(), "attention_mask": mask.tolist()})
    raise LatentError(f"return_tensors={return_tensors!r}", expected="'pt', 'np' or None")
