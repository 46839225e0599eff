"""Bytes on disk: readers, the shard writer, verification. Knows no layers and no models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smelt.checkpoint.digest import PIECE, TensorDigest, WriteLog, tensor_digest
from smelt.checkpoint.hub import find_model
from smelt.checkpoint.layout import Shard, ShardLayout, plan_shards
from smelt.checkpoint.reader import Checkpoint, open_checkpoint
from smelt.checkpoint.sizes import parse_mergekit_size, parse_size, show_bytes
from smelt.checkpoint.workdir import check_space, check_target
from smelt.checkpoint.writer import CheckpointWriter

if TYPE_CHECKING:
    from smelt.checkpoint.finite import has_nonfinite, nonfinite_positions
    from smelt.checkpoint.verify import VerifyReport, verify_directory

__all__ = [
    "PIECE",
    "Checkpoint",
    "CheckpointWriter",
    "Shard",
    "ShardLayout",
    "TensorDigest",
    "VerifyReport",
    "WriteLog",
    "check_space",
    "check_target",
    "find_model",
    "has_nonfinite",
    "nonfinite_positions",
    "open_checkpoint",
    "parse_mergekit_size",
    "parse_size",
    "plan_shards",
    "show_bytes",
    "tensor_digest",
    "verify_directory",
]

_LATER = {
    "VerifyReport": "verify",
    "verify_directory": "verify",
    "has_nonfinite": "finite",
    "nonfinite_positions": "finite",
}


def __getattr__(name: str) -> Any:
    """Load what needs numpy or threads when it is first asked for."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
