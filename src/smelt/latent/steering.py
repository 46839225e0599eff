"""Steering vectors: what to add to the hidden state at which layers, with arithmetic, files and provenance.

A vector's key L means the input of decoder layer L (0: embeddings, n: before the final norm), as everywhere.
Tools that add to the *output* of layer N (repeng, llama.cpp, steering-vectors) call the same place N = L - 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smelt._version import __version__
from smelt.core.errors import CheckpointError, LatentError
from smelt.latent.gguf_vectors import MAGIC, read_gguf, write_gguf, write_whole

FORMAT = "smelt.steering.v1"


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """One vector (H,) per layer, float32 on the CPU; or (T, H) for the first T tokens of a prompt.

    ``n_layers`` and ``model_type`` say what it fits, ``model`` and ``made`` where it comes from. Sums take a
    layer that only one side has as it is.

    >>> a = SteeringVector({3: torch.tensor([1.0, 2.0])}, n_layers=4)
    >>> b = SteeringVector({3: torch.tensor([1.0, 0.0]), 4: torch.tensor([3.0, 1.0])}, n_layers=4)
    >>> {layer: vector.tolist() for layer, vector in ((a - b) * 2).vectors.items()}
    {3: [0.0, 4.0], 4: [-6.0, -2.0]}
    """

    vectors: Mapping[int, Tensor]
    n_layers: int | None = None
    model: str = ""
    model_type: str = ""
    made: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked = {int(layer): _checked(layer, vector) for layer, vector in sorted(self.vectors.items())}
        if not checked:
            raise LatentError("a steering vector without layers", expected="at least one {layer: vector}")
        sizes = sorted({vector.shape[-1] for vector in checked.values()})
        if len(sizes) > 1:
            raise LatentError(f"vectors of sizes {sizes}", expected="one hidden size for all layers")
        _check_layers(checked, self.n_layers)
        object.__setattr__(self, "vectors", checked)

    @property
    def layers(self) -> list[int]:
        """The layers that have a vector."""
        return list(self.vectors)

    @property
    def hidden_size(self) -> int:
        """Size of the hidden state it is made for."""
        return next(iter(self.vectors.values())).shape[-1]

    def select(self, layers: Iterable[int]) -> SteeringVector:
        """Only these layers; one that is not there is an error."""
        wanted = sorted(set(layers))
        missing = [layer for layer in wanted if layer not in self.vectors]
        if missing:
            raise LatentError(f"no vector for layers {missing}", expected=f"layers among {self.layers}")
        return replace(self, vectors={layer: self.vectors[layer] for layer in wanted})

    def normalised(self) -> SteeringVector:
        """Each vector at length 1; a zero vector stays zero."""
        return self._map(lambda vector: vector / vector.norm(dim=-1, keepdim=True).clamp(min=1e-30))

    def norms(self) -> dict[int, float]:
        """Length of each layer's vector (over all tokens, where there are several)."""
        return {layer: float(vector.double().norm()) for layer, vector in self.vectors.items()}

    def _map(self, change: Any) -> SteeringVector:
        return replace(self, vectors={layer: change(vector) for layer, vector in self.vectors.items()})

    def _combine(self, other: object, sign: int) -> SteeringVector:
        if not isinstance(other, SteeringVector):
            return NotImplemented
        _check_alike(self, other)
        result = dict(self.vectors)
        for layer, vector in other.vectors.items():
            if layer in result and result[layer].shape != vector.shape:
                shapes = f"{tuple(result[layer].shape)} and {tuple(vector.shape)}"
                raise LatentError(
                    f"vectors of shapes {shapes}", where=f"layer {layer}", expected="equal shapes"
                )
            result[layer] = result[layer] + sign * vector if layer in result else sign * vector
        made = {"sum": [dict(self.made), dict(other.made)], "signs": [1, sign]}
        known = {
            name: getattr(self, name) or getattr(other, name) for name in ("n_layers", "model", "model_type")
        }
        return SteeringVector(result, made=made, **known)

    def __add__(self, other: object) -> SteeringVector:
        return self._combine(other, 1)

    def __sub__(self, other: object) -> SteeringVector:
        return self._combine(other, -1)

    def __mul__(self, factor: object) -> SteeringVector:
        if isinstance(factor, bool) or not isinstance(factor, (int, float, np.integer, np.floating)):
            return NotImplemented
        if not math.isfinite(factor):
            raise LatentError(f"a steering vector times {factor}", expected="a finite number")
        return self._map(lambda vector: vector * float(factor))

    __rmul__ = __mul__

    def __truediv__(self, factor: object) -> SteeringVector:
        if isinstance(factor, bool) or not isinstance(factor, (int, float, np.integer, np.floating)):
            return NotImplemented
        if factor == 0:
            raise LatentError("a steering vector divided by 0", expected="any other number")
        return self * (1 / float(factor))

    def __neg__(self) -> SteeringVector:
        return self._map(torch.neg)

    def __eq__(self, other: object) -> bool:
        """Equal vectors at equal layers of models of equal depth; provenance does not count."""
        if not isinstance(other, SteeringVector):
            return NotImplemented
        return (
            self.layers == other.layers
            and self.n_layers == other.n_layers
            and all(torch.equal(vector, other.vectors[layer]) for layer, vector in self.vectors.items())
        )

    __hash__ = None  # type: ignore[assignment]

    def check_fits(self, model: Any) -> None:
        """A LatentError if the vector is not made for a model of this family, depth and width."""
        config = model.config.get_text_config(decoder=True)
        facts = (
            ("model type", self.model_type, getattr(config, "model_type", "")),
            ("layers", self.n_layers, config.num_hidden_layers),
            ("hidden size", self.hidden_size, config.hidden_size),
        )
        for what, own, needed in facts:
            if own and needed and own != needed:
                fix = "make a vector for this model, or clear model_type" if what == "model type" else ""
                raise LatentError(
                    f"the steering vector has {what} {own}", expected=f"{needed} of the model", fix=fix
                )
        _check_layers(self.vectors, config.num_hidden_layers)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file, tensors named by layer; a name ending in ``.gguf`` writes that format."""
        path = Path(path)
        if path.suffix == ".gguf":
            return self.to_gguf(path)
        from safetensors.torch import save

        metadata = {
            "format": FORMAT,
            "smelt": __version__,
            "model": self.model,
            "model_type": self.model_type,
            "n_layers": "" if self.n_layers is None else str(self.n_layers),
            "hidden_size": str(self.hidden_size),
            "made": json.dumps(dict(self.made), sort_keys=True),
        }
        tensors = {str(layer): vector.contiguous() for layer, vector in self.vectors.items()}
        return write_whole(path, save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path, *, at: str = "input", n_layers: int | None = None) -> SteeringVector:
        """Read a file of ``save``, a GGUF control vector, or any safetensors dict {layer: vector}.

        For a dict that smelt did not write, ``at="output"`` says its numbers mean outputs of layers.
        """
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"no steering vector at {path}")
        with path.open("rb") as stream:
            if stream.read(4) == MAGIC:
                return cls.from_gguf(path, n_layers=n_layers)
        return _load_safetensors(path, _shift(at), n_layers)

    def to_gguf(self, path: str | Path, *, drop_early: bool = False) -> Path:
        """Write a control vector for llama.cpp and repeng, which add ``direction.N`` after layer N.

        The input of layer L is the output of layer L - 1, so layer 0 has no place there, and llama.cpp takes
        no ``direction.0``. ``drop_early`` leaves layers 0 and 1 out instead of refusing.
        """
        early = [layer for layer in self.layers if layer < 2]
        if early and not drop_early:
            fix = "pass drop_early=True (--drop-early), or select() the layers from 2 on (--layers)"
            raise LatentError(
                f"GGUF control vectors have no place for layers {early}", where=str(path), fix=fix
            )
        if any(vector.ndim == 2 for vector in self.vectors.values()):
            raise LatentError(
                "GGUF control vectors hold one vector per layer, not one per token", where=str(path)
            )
        kept = {layer - 1: vector.numpy() for layer, vector in self.vectors.items() if layer >= 2}
        write_gguf(path, kept, self.model_type)
        return Path(path)

    @classmethod
    def from_gguf(cls, path: str | Path, *, n_layers: int | None = None) -> SteeringVector:
        """Read a control vector of repeng or llama.cpp: its ``direction.N`` becomes layer N + 1 here."""
        found = read_gguf(path)
        vectors = {layer + 1: torch.from_numpy(vector.copy()) for layer, vector in found.directions.items()}
        return cls(
            vectors, n_layers, model_type=found.model_hint, made={"from": "gguf", "file": Path(path).name}
        )


def _checked(layer: Any, vector: Tensor) -> Tensor:
    if isinstance(layer, bool) or not isinstance(layer, (int, np.integer)):
        raise LatentError(f"layer {layer!r}", expected="a whole number")
    if not isinstance(vector, Tensor) or vector.ndim not in (1, 2) or vector.numel() == 0:
        found = f"shape {tuple(vector.shape)}" if isinstance(vector, Tensor) else type(vector).__name__
        raise LatentError(found, where=f"steering vector, layer {layer}", expected="a tensor (H,) or (T, H)")
    if not bool(vector.isfinite().all()):
        raise LatentError("NaN or Inf", where=f"steering vector, layer {layer}")
    return vector.detach().float().cpu()


def _check_layers(layers: Iterable[int], depth: int | None) -> None:
    bad = [layer for layer in layers if layer < 0 or (depth is not None and layer > depth)]
    if bad:
        expected = "0 or more" if depth is None else f"0..{depth} of a model with {depth} layers"
        raise LatentError(f"steering vector for layers {bad}", expected=expected)


def _check_alike(one: SteeringVector, other: SteeringVector) -> None:
    for name in ("hidden_size", "n_layers", "model_type"):
        left, right = getattr(one, name), getattr(other, name)
        if left and right and left != right:
            raise LatentError(f"{name.replace('_', ' ')} {left} and {right}", where="sum of steering vectors")


def _shift(at: str) -> int:
    if at not in ("input", "output"):
        raise LatentError(f"at={at!r}", expected="'input' or 'output' of a layer")
    return 1 if at == "output" else 0


def _load_safetensors(path: Path, shift: int, n_layers: int | None) -> SteeringVector:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
            names = list(stream.keys())
            tensors = {name: stream.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is neither safetensors nor GGUF: {error}") from error
    own = metadata.get("format") == FORMAT
    vectors: dict[int, Tensor] = {}
    for name, tensor in tensors.items():
        layer = _layer_of(name, path) + (0 if own else shift)
        if layer in vectors:
            raise CheckpointError(f"two tensors for layer {layer}", where=str(path))
        vectors[layer] = tensor
    if not own:
        return SteeringVector(vectors, n_layers, made={"from": "safetensors", "file": path.name})
    depth = int(metadata["n_layers"]) if metadata.get("n_layers") else n_layers
    made = json.loads(metadata.get("made", "{}"))
    return SteeringVector(vectors, depth, metadata.get("model", ""), metadata.get("model_type", ""), made)


def _layer_of(name: str, path: Path) -> int:
    number = name.rpartition(".")[2]
    if not number.isdecimal():
        raise CheckpointError(
            f"tensor {name!r}", where=str(path), expected="a layer number, as in '20' or 'layer.20'"
        )
    return int(number)
