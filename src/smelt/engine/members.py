"""The models a recipe names, opened once each: headers, config, structure. No weight is read here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smelt.arch import Structure, read_structure
from smelt.checkpoint import Checkpoint, find_model, open_checkpoint
from smelt.core.errors import Problem, SmeltError
from smelt.core.types import TensorMeta, TensorSpec
from smelt.recipe import ModelRef

#: formats of weights that must be unpacked before they can be merged
PACKED = {"F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"}


@dataclass(frozen=True)
class FilePart:
    """A tensor of an opened model."""

    checkpoint: Checkpoint
    meta: TensorMeta

    @property
    def spec(self) -> TensorSpec:
        """Name, dtype and shape."""
        return TensorSpec(self.meta.name, self.meta.dtype, self.meta.shape)

    @property
    def where(self) -> str:
        """The file, for messages."""
        return str(self.meta.file)


@dataclass
class Member:
    """A model as the planner sees it: named parts, config, structure. A nested merge looks the same."""

    label: str
    parts: Mapping[str, Any]  # name -> FilePart or Job
    config: Mapping[str, Any]
    structure: Structure
    folder: Path | None = None
    checkpoint: Checkpoint | None = None
    vocabulary: Mapping[str, int] | None = field(default=None, repr=False)


class Members:
    """Opens models by reference; every reference once."""

    def __init__(self) -> None:
        self.by_ref: dict[ModelRef, Member | None] = {}
        self.problems: list[Problem] = []

    def open(self, ref: ModelRef) -> Member | None:
        """The model, or None after its problems were noted."""
        if ref not in self.by_ref:
            try:
                self.by_ref[ref] = self._open(ref)
            except SmeltError as error:
                self.problems.extend(error.problems)
                self.by_ref[ref] = None
        return self.by_ref[ref]

    def _open(self, ref: ModelRef) -> Member:
        if ref.lora is not None:
            raise SmeltError(
                "LoRA adapters are read but not applied yet", where=str(ref),
                fix="merge the adapter into its model first (peft: merge_and_unload)",
            )  # fmt: skip
        checkpoint = open_checkpoint(find_model(ref.path, ref.revision))
        config = dict(checkpoint.config)
        if ref.override_architecture:
            config["architectures"] = [ref.override_architecture]
        self._refuse_packed(ref, checkpoint, config)
        parts = {name: FilePart(checkpoint, meta) for name, meta in checkpoint.tensors.items()}
        path = checkpoint.path
        folder = path if path.is_dir() else None
        return Member(str(ref), parts, config, read_structure(checkpoint.tensors, config), folder, checkpoint)

    def _refuse_packed(self, ref: ModelRef, checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
        kind = config.get("quantization_config")
        packed = sorted({meta.dtype for meta in checkpoint.tensors.values()} & PACKED)
        if kind or packed:
            how = kind.get("quant_method", "an unnamed way") if isinstance(kind, dict) else ", ".join(packed)
            raise SmeltError(
                f"the model is quantised ({how})", where=str(ref), expected="bf16, fp16, fp32 or fp64 weights",
                fix="dequantise it first; merging packed numbers would give noise",
            )  # fmt: skip

    def close(self) -> None:
        """Close every file."""
        for member in self.by_ref.values():
            if member is not None and member.checkpoint is not None:
                member.checkpoint.close()


def read_vocabulary(folder: Path) -> dict[str, int] | None:
    """Token -> id from tokenizer.json (with added tokens), or None when there is no such file."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    vocab = data.get("model", {}).get("vocab") or {}
    if isinstance(vocab, list):  # Unigram: [token, score] pairs in id order
        vocab = {entry[0]: number for number, entry in enumerate(vocab)}
    found = dict(vocab)
    for token in data.get("added_tokens") or []:
        found[token["content"]] = token["id"]
    return found
