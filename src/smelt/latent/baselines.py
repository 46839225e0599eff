"""Two models and everything that is made of them: blends, weight merges, ensembles, stitched models."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import xxhash

from smelt.core.errors import LatentError
from smelt.latent.adapters import find_decoder
from smelt.latent.answering import stop_tokens
from smelt.latent.ensemble import LogitMix
from smelt.latent.loading import load_base, load_tokenizer
from smelt.latent.recipe import ModelRef
from smelt.latent.sweep_grid import Cell
from smelt.latent.wrapping import wrap, wrap_ensemble


@dataclass(frozen=True, slots=True)
class Contender:
    """A system ready to answer: a model, what its ``generate`` is called with, and its ``forward``."""

    model: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    hidden: bool = True  # whether it has one hidden state to look at


class Arena:
    """A base and a donor, loaded once; every cell of a sweep is made from their tensors.

    The donor is a whole model with its head, since it is a baseline too.
    """

    def __init__(
        self, base: Any, donor: Any, tokenizer: Any, names: tuple[str, str] = ("base", "donor")
    ) -> None:
        self.base, self.donor, self.tokenizer, self.names = base, donor, tokenizer, names
        self.stops = frozenset(stop_tokens(base, tokenizer)) | frozenset(stop_tokens(donor, tokenizer))
        self.wrapper = wrap(base, [donor], tokenizer)
        self.depth: int = self.wrapper.depth
        self._identity: dict[str, Any] | None = None

    @classmethod
    def load(cls, base: str, donor: str, *, dtype: Any = None, device: Any = None) -> Arena:
        """Load both from directories or the Hub."""
        from smelt.latent.serving import best_device, quiet_loading

        tokenizer = load_tokenizer(ModelRef(base))
        if tokenizer is None:
            fix = "save the tokenizer into its directory"
            raise LatentError("no tokenizer beside the base", where=base, fix=fix)
        with quiet_loading():
            home = load_base(ModelRef(base), dtype=dtype, device=device or best_device()).eval()
            other = load_base(ModelRef(donor), dtype=home.dtype, device=device or best_device()).eval()
        return cls(home, other, tokenizer, (base, donor))

    @property
    def identity(self) -> dict[str, Any]:
        """What the models are: name, revision, and a fingerprint of every weight."""
        if self._identity is None:
            pair = zip(("base", "donor"), self.names, (self.base, self.donor), strict=True)
            self._identity = {role: {"name": name, **describe(model)} for role, name, model in pair}
        return self._identity

    def fingerprint(self) -> list[str]:
        """What of the identity decides results."""
        return [self.identity[role]["weights"] for role in ("base", "donor")]

    @contextmanager
    def open(self, cell: Cell) -> Iterator[Contender]:
        """The system of a cell; what was made for it is gone afterwards."""
        if cell.kind == "latent":
            yield Contender(self.wrapper, {"sites": cell.sites(), "scope": cell.scope})
        elif cell.kind == "ensemble":
            share = cell.beta if cell.beta is not None else 0.5
            mix = LogitMix(cell.op, (1 - share, share))
            yield Contender(wrap_ensemble([self.base, self.donor], mix, self.tokenizer), hidden=False)
        else:
            yield Contender(self._plain(cell))

    def _plain(self, cell: Cell) -> Any:
        if cell.kind == "weight":
            return weight_merge(self.base, self.donor, cell.op, cell.beta if cell.beta is not None else 0.5)
        if cell.kind == "stitched":
            return stitch(self.base, self.donor, cell.layers[0])
        return {"base": self.base, "donor": self.donor}[cell.kind]

    def check(self, cells: list[Cell]) -> None:
        """Refuse blends that cannot be run before anything is run."""
        for cell in cells:
            if cell.kind == "latent":
                with self.wrapper.using(cell.sites(), scope=cell.scope):
                    pass


def describe(model: Any) -> dict[str, Any]:
    """A model's architecture, revision (if the Hub gave one) and weights, as data."""
    return {
        "class": type(model).__name__,
        "revision": getattr(model.config, "_commit_hash", None),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights": fingerprint(model),
    }


def fingerprint(model: Any) -> str:
    """One value for the same weights under the same names, whatever the files they came from."""
    summary = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        summary.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        summary.update(raw.numpy())
    return summary.hexdigest()


def twin(model: Any) -> Any:
    """A second model over the same tensors: modules of its own, no memory of its own."""
    shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, shared)


def weight_merge(base: Any, donor: Any, op: str, beta: float) -> Any:
    """The two models merged in weights by smelt's own engine: ``op`` is linear or slerp."""
    import smelt

    states = base.state_dict(), donor.state_dict()
    if op == "slerp":
        merged = smelt.merge_state_dicts("slerp", [states[1]], states[0], t=beta)
    else:
        merged = smelt.merge_state_dicts(op, list(states), weight=[1 - beta, beta])
    model = twin(base)
    placed = {name: tensor.to(states[0][name].device) for name, tensor in merged.items()}
    model.load_state_dict(placed, assign=True)
    model.tie_weights()
    return model.eval()


def stitch(base: Any, donor: Any, layer: int) -> Any:
    """Donor's embeddings and first ``layer`` layers under the base's other layers, norm and head."""
    model = twin(base)
    target, source = find_decoder(model, "base"), find_decoder(donor, "donor")
    same = len(source.layers) >= layer and target.width == source.width
    if not same or source.embed.weight.shape != target.embed.weight.shape:
        raise LatentError("the donor's lower layers do not fit under the base", expected="equal shapes")
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is target.embed.weight
    for below in range(layer):
        target.layers[below] = twin(source.layers[below])
    _take_embeddings(target, source, model, head if tied else None)
    return model.eval()


def _take_embeddings(target: Any, source: Any, model: Any, head: Any) -> None:
    """The donor's token (and position) embeddings; a head tied to the base's keeps the base's."""
    own = target.embed.weight
    beside = {
        name: part
        for name, part in source.shell.named_children()
        if isinstance(part, torch.nn.Embedding) or "embed" in name
    }
    for name, part in beside.items():
        setattr(target.shell, name, twin(part))
    if not beside:
        model.set_input_embeddings(twin(source.embed))
    if head is not None:
        head.weight = own
