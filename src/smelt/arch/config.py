"""What a config says about depth, vocabulary and layers, wherever in its nested parts it says so."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from smelt.arch.stacks import StackInfo

_DEPTH_NAMES = frozenset(
    {
        "num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_blocks", "n_blocks", "depth",
        "encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers",
        "encoder_num_hidden_layers", "decoder_num_hidden_layers",
    }
)  # fmt: skip
_EXTRA_LAYERS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_layers")
_EXPERTS = re.compile(r"(num|n)_(\w+_)?experts|moe_num_experts|num_experts")
_NOT_PER_LAYER = re.compile(
    r"architectures|\w*_token_ids?|\w*_ids|\w*only_layers|\w*_(idx|idxs|indices|indexes)"
)
_LAYERISH = re.compile(
    r"layer|block|type|pattern|attn|attention|head|mlp|moe|rope|window|sparsity|multiplier|interm"
)
# words that tell the parts of a model apart, in config keys and in tensor names alike
_PARTS = {
    "vision": "vision", "visual": "vision", "image": "vision", "vit": "vision", "video": "vision",
    "audio": "audio", "speech": "audio", "text": "text", "language": "text", "llm": "text", "lm": "text",
    "encoder": "encoder", "decoder": "decoder", "qformer": "qformer", "talker": "talker",
    "thinker": "thinker", "code2wav": "code2wav", "mtp": "mtp", "predictor": "predictor",
    "projector": "projector", "connector": "projector", "adapter": "projector",
}  # fmt: skip
SENSES = frozenset({"vision", "audio"})
ASIDE = SENSES | {"qformer", "projector", "predictor", "mtp"}
_MAX_NESTING = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """A number in a config, by its dotted path."""

    path: str
    value: int

    @property
    def parent(self) -> str:
        """Dotted path of the dict it stands in."""
        return self.path.rpartition(".")[0]


def parts_of(text: str) -> frozenset[str]:
    """The parts of a model a dotted path speaks of.

    >>> sorted(parts_of("vision_config.num_hidden_layers")), sorted(parts_of("model.visual.blocks."))
    (['vision'], ['vision'])
    """
    words = re.split(r"[._]", text.lower())
    return frozenset(_PARTS[word] for word in words if word in _PARTS)


def sections(
    config: Mapping[str, Any], path: str = "", nesting: int = 0
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The config and every dict in it, with dotted paths."""
    yield path, config
    if nesting < _MAX_NESTING:
        for key, value in config.items():
            if isinstance(value, Mapping):
                yield from sections(value, f"{path}.{key}" if path else str(key), nesting + 1)


def entries(config: Mapping[str, Any], names: frozenset[str]) -> list[Entry]:
    """All whole numbers in the config under one of the names."""
    found = []
    for path, section in sections(config):
        for key, value in section.items():
            if key in names and type(value) is int and value > 0:
                found.append(Entry(f"{path}.{key}" if path else key, value))
    return found


def depth_entries(config: Mapping[str, Any]) -> list[Entry]:
    """Every layer count in the config."""
    return entries(config, _DEPTH_NAMES)


def vocab_entries(config: Mapping[str, Any]) -> list[Entry]:
    """Every vocabulary size in the config, parts that see or hear left out."""
    return [
        entry for entry in entries(config, frozenset({"vocab_size"})) if not parts_of(entry.path) & SENSES
    ]


def expert_counts(config: Mapping[str, Any]) -> frozenset[int]:
    """Every number of experts in the config."""
    return frozenset(
        value
        for _, section in sections(config)
        for key, value in section.items()
        if type(value) is int and value > 1 and isinstance(key, str) and _EXPERTS.fullmatch(key)
    )


def lookup(config: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or None.

    >>> lookup({"text_config": {"vocab_size": 7}}, "text_config.vocab_size")
    7
    """
    value: Any = config
    for key in path.split(".") if path else ():
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def extra_layers(config: Mapping[str, Any], parent: str) -> int:
    """Layers beyond the depth that a checkpoint may carry for multi-token prediction."""
    section = lookup(config, parent)
    values = [section.get(key) for key in _EXTRA_LAYERS] if isinstance(section, Mapping) else []
    return max((value for value in values if type(value) is int), default=0)


def assign_depths(stacks: list[StackInfo], config: Mapping[str, Any]) -> list[StackInfo]:
    """Give every layer count of the config to the one stack it fits best."""
    keys: dict[str, list[str]] = {stack.prefix: [] for stack in stacks}
    found = sorted(depth_entries(config), key=lambda entry: not parts_of(entry.path))
    for entry in found:
        fitting = [stack for stack in stacks if fits(stack, entry, config)]
        if fitting:
            best = max(fitting, key=lambda stack: _preference(stack, entry, keys, config))
            if _foreign(best, entry) == 0:
                keys[best.prefix].append(entry.path)
    return [replace(stack, depth_keys=tuple(keys[stack.prefix])) for stack in stacks]


def fits(stack: StackInfo, entry: Entry, config: Mapping[str, Any]) -> bool:
    """Whether a layer count can be that of a stack."""
    return entry.value <= stack.count <= entry.value + extra_layers(config, entry.parent)


def _foreign(stack: StackInfo, entry: Entry) -> int:
    """How many parts the config key names that the stack does not belong to."""
    named, own = parts_of(entry.path), parts_of(stack.prefix)
    alien = named - own
    return len(alien - {"encoder"}) if own & SENSES & named else len(alien - {"text", "decoder", "thinker"})


def _preference(
    stack: StackInfo, entry: Entry, keys: Mapping[str, list[str]], config: Mapping[str, Any]
) -> tuple[int, ...]:
    """Order of stacks for one key: shared parts, then few unshared, then those with no key yet, then size."""
    named, own = parts_of(entry.path), parts_of(stack.prefix)
    encoder_first = not named and bool(config.get("is_encoder_decoder")) and "encoder" in own
    score = 2 * len(named & own) - 3 * _foreign(stack, entry) - len(own - named)
    return score + 2 * encoder_first, -len(keys[stack.prefix]), stack.nbytes


def per_layer_lists(stack: StackInfo, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Dotted keys of lists with one item per layer, beside the keys that hold the depth."""
    found = []
    for parent in dict.fromkeys(key.rpartition(".")[0] for key in stack.depth_keys):
        depth = {lookup(config, key) for key in stack.depth_keys if key.rpartition(".")[0] == parent}
        section = lookup(config, parent)
        for key, value in section.items() if isinstance(section, Mapping) else ():
            if isinstance(value, list) and len(value) in depth and _is_per_layer(key, len(value)):
                found.append(f"{parent}.{key}" if parent else key)
    return tuple(found)


def _is_per_layer(key: str, length: int) -> bool:
    """Whether a list of the right length is more than a coincidence; short ones need a telling name."""
    if _NOT_PER_LAYER.fullmatch(key):
        return False
    return length > 4 or _LAYERISH.search(key) is not None
