"""Opens only the shards a truncated donor needs: a filtered index over local files, or over what the hub
must send."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smelt.core.errors import LatentError
from smelt.latent.loading import cut_config

INDEX = "model.safetensors.index.json"
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|layer)\.(\d+)\.")


def layer_of(name: str) -> int | None:
    """The decoder layer a tensor name belongs to.

    >>> layer_of("model.layers.12.mlp.up_proj.weight"), layer_of("transformer.h.3.ln_1.bias")
    (12, 3)
    >>> layer_of("lm_head.weight") is None
    True
    """
    found = LAYER.search(name)
    return int(found[1]) if found else None


def wanted_shards(weight_map: dict[str, str], depth: int) -> dict[str, str]:
    """The part of a weight map below ``depth``: no head, no final norm of its own shard, no upper layers."""
    kept = {}
    for name, shard in weight_map.items():
        layer = layer_of(name)
        if layer is not None and layer >= depth:
            continue
        if layer is None and name.split(".")[0] in ("lm_head", "embed_out", "output"):
            continue
        kept[name] = shard
    return kept


@contextmanager
def truncated_source(
    path: str, revision: str | None, config: Any, depth: int | None
) -> Iterator[tuple[str, Any]]:
    """A directory to load from and the config to load with; temporary when the checkpoint is sharded."""
    cut = cut_config(config, depth)
    index = _index(path, revision) if depth is not None else None
    if index is None or depth is None or depth >= int(config.get_text_config(decoder=True).num_hidden_layers):
        yield path, cut
        return
    kept = wanted_shards(index["weight_map"], depth)
    with tempfile.TemporaryDirectory(prefix="smelt-donor-") as folder:
        target = Path(folder)
        for shard in sorted(set(kept.values())):
            (target / shard).symlink_to(_fetch(path, revision, shard))
        (target / INDEX).write_text(json.dumps({"metadata": index.get("metadata", {}), "weight_map": kept}))
        cut.save_pretrained(folder)
        yield folder, cut


def _index(path: str, revision: str | None) -> dict[str, Any] | None:
    """The shard index, or None for a checkpoint in one file."""
    if Path(path).is_dir():
        file = Path(path) / INDEX
        return json.loads(file.read_text()) if file.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    try:
        return json.loads(Path(hf_hub_download(path, INDEX, revision=revision)).read_text())
    except LocalEntryNotFoundError:
        return None
    except EntryNotFoundError:
        return None
    except HfHubHTTPError as error:
        raise LatentError(f"cannot reach {path!r} on the hub: {error}") from error


def _fetch(path: str, revision: str | None, shard: str) -> Path:
    """One shard, from the directory or the hub's cache."""
    if Path(path).is_dir():
        file = Path(path) / shard
        if not file.is_file():
            raise LatentError(
                f"{path} names a shard it does not have: {shard}", fix="download the checkpoint again"
            )
        return file.resolve()
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(path, shard, revision=revision)).resolve()
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise LatentError(f"cannot get {shard} of {path!r}: {str(error).splitlines()[0]}") from error
