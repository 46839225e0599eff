"""Donors that are the base plus a PEFT adapter: module skeletons over the base's own tensors, only the
adapter is new."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smelt.core.errors import LatentError, MissingExtraError
from smelt.latent.adapters import find_decoder
from smelt.latent.recipe import ModelRef


def twin(model: Any) -> Any:
    """A copy of the modules that holds the very same tensors, without anybody's hooks.

    >>> layer = nn.Linear(2, 2)
    >>> twin(layer).weight is layer.weight
    True
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    other = copy.deepcopy(model, memo)
    for module in other.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        module.__dict__.pop("_output_capturing_hooks_installed", None)
    return other


def load_lora_donor(ref: ModelRef, base: Any, depth: int | None, folder: Path | None = None) -> Any:
    """The base with the adapter ``ref.adapter`` switched on, cut to ``depth`` layers."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingExtraError("peft", "hf") from error
    path = str(ref.adapter)
    if folder is not None and (folder / path).exists():
        path = str(folder / path)
    skeleton = twin(base)
    decoder = find_decoder(skeleton, "donor")
    if depth is not None and depth < decoder.depth:
        setattr(decoder.shell, decoder.layers_name, nn.ModuleList(list(decoder.layers)[:depth]))
        decoder.config.num_hidden_layers = depth
        if getattr(decoder.config, "layer_types", None) is not None:
            decoder.config.layer_types = list(decoder.config.layer_types)[:depth]
    _check_adapter(path, depth)
    try:
        with warnings.catch_warnings():  # PEFT still reads a name that transformers renamed
            warnings.simplefilter("ignore", FutureWarning)
            wrapped = PeftModel.from_pretrained(skeleton, path, is_trainable=False).eval()
    except (OSError, ValueError) as error:
        raise LatentError(f"cannot use the adapter {path!r}: {str(error).splitlines()[0]}",
                          expected="a PEFT adapter directory trained on this base") from error  # fmt: skip
    donor = wrapped.get_base_model()
    object.__setattr__(donor, "smelt_adapter", wrapped)
    return donor


def _check_adapter(path: str, depth: int | None) -> None:
    """A local adapter must be there; a hub name is PEFT's to resolve."""
    if Path(path).exists() and not (Path(path) / "adapter_config.json").is_file():
        raise LatentError(f"{path} holds no adapter_config.json", expected="a PEFT adapter directory")


def own_bytes(donor: Any, base: Any) -> int:
    """Bytes of the donor's tensors that are not the base's."""
    theirs = {tensor.data_ptr() for tensor in base.state_dict().values()}
    tensors: list[torch.Tensor] = list(donor.state_dict().values())
    return sum(
        t.numel() * t.element_size()
        for t in {id(t): t for t in tensors}.values()
        if t.data_ptr() not in theirs
    )
