"""Tiny llama-shaped checkpoints, written without torch and without smelt, and read back the same way."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

WORDS = ("<unk>", "<s>", "</s>", *(chr(ord("a") + i) for i in range(26)), "the", "of", "and")
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


@dataclass
class Model:
    """A checkpoint on disk and the values that stand in it (as float64; integers as they are)."""

    path: Path
    values: dict[str, np.ndarray]
    dtypes: dict[str, str]
    config: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return str(self.path)


def shapes(
    layers: int = 2, hidden: int = 8, inner: int = 12, vocab: int = 32, tied: bool = False
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a llama with two heads and one key-value head."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        found |= {
            f"{at}input_layernorm.weight": (hidden,), f"{at}post_attention_layernorm.weight": (hidden,),
            f"{at}self_attn.q_proj.weight": (hidden, hidden), f"{at}self_attn.k_proj.weight": (hidden // 2, hidden),
            f"{at}self_attn.v_proj.weight": (hidden // 2, hidden), f"{at}self_attn.o_proj.weight": (hidden, hidden),
            f"{at}mlp.gate_proj.weight": (inner, hidden), f"{at}mlp.up_proj.weight": (inner, hidden),
            f"{at}mlp.down_proj.weight": (hidden, inner),
        }  # fmt: skip
    found["model.norm.weight"] = (hidden,)
    return found if tied else found | {"lm_head.weight": (vocab, hidden)}


def config_of(layers: int, hidden: int, inner: int, vocab: int, tied: bool, dtype: str) -> dict[str, Any]:
    """A llama config that transformers reads."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner,
        "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": layers, "vocab_size": vocab,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": tied, "dtype": DTYPES[dtype],
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


def pack(values: Any, dtype: str) -> bytes:
    """Numbers as bytes of a dtype; bf16 by cutting to float32 and rounding to nearest even."""
    array = np.asarray(values)
    plain = {
        "F16": np.float16,
        "F32": np.float32,
        "F64": np.float64,
        "I64": np.int64,
        "I32": np.int32,
        "U8": np.uint8,
    }
    if dtype != "BF16":
        return array.astype(plain[dtype]).tobytes()
    bits = array.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()


def unpack(raw: bytes, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers again, floats as float64."""
    plain = {
        "F16": np.float16, "F32": np.float32, "F64": np.float64, "I64": np.int64, "I32": np.int32, "U8": np.uint8,
        "BOOL": np.bool_,
    }  # fmt: skip
    if dtype == "BF16":
        array = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        array = np.frombuffer(raw, plain[dtype])
    return (array.astype(np.float64) if dtype in DTYPES else array).reshape(shape)


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """A safetensors file from (dtype, shape, bytes) by name."""
    header, at = {}, 0
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(raw)]}
        at += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(raw for _, _, raw in tensors.values()))


def stored(folder: Path) -> Iterator[tuple[str, str, tuple[int, ...], bytes]]:
    """(name, dtype, shape, bytes) of every tensor in a folder, sorted by name."""
    found = []
    for path in folder.glob("*.safetensors"):
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8 : 8 + size]).items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                raw = data[8 + size + first : 8 + size + last]
                found.append((name, entry["dtype"], tuple(entry["shape"]), raw))
    return iter(sorted(found))


def read(folder: Path | str) -> Model:
    """A checkpoint as it stands on disk."""
    folder = Path(folder)
    values, dtypes = {}, {}
    for name, dtype, shape, raw in stored(folder):
        values[name], dtypes[name] = unpack(raw, dtype, shape), dtype
    config = folder / "config.json"
    return Model(folder, values, dtypes, json.loads(config.read_text()) if config.exists() else {})


def tensor_bytes(folder: Path | str) -> dict[str, bytes]:
    """The bytes of every tensor, whatever file it stands in."""
    return {name: raw for name, _, _, raw in stored(Path(folder))}


def write(
    folder: Path, *, seed: int = 0, dtype: str = "BF16", layers: int = 2, hidden: int = 8, inner: int = 12,
    vocab: int = 32, tied: bool = False, near: Model | None = None, spread: float = 0.02,
    change: Mapping[str, Any] | None = None, drop: tuple[str, ...] = (), dtypes: Mapping[str, str] | None = None,
    config: Mapping[str, Any] | None = None, shards: int = 1, tokenizer: bool = True,
) -> Model:  # fmt: skip
    """A model of random weights, or a fine-tune ``near`` another; ``change`` sets tensors, ``drop`` leaves some out."""
    random = np.random.default_rng(seed)
    values: dict[str, np.ndarray] = {}
    for name, shape in shapes(layers, hidden, inner, vocab, tied).items():
        start = near.values[name] if near is not None and name in near.values else float(len(shape) == 1)
        values[name] = start + random.normal(0, spread, shape)
    values |= {name: np.asarray(value) for name, value in (change or {}).items()}
    kinds = {name: (dtypes or {}).get(name, dtype) for name in values if name not in drop}
    folder.mkdir(parents=True)
    packed = {name: (kind, values[name].shape, pack(values[name], kind)) for name, kind in kinds.items()}
    _write_shards(folder, packed, shards)
    settings = config_of(layers, hidden, inner, vocab, tied, dtype) | dict(config or {})
    (folder / "config.json").write_text(json.dumps(settings))
    if tokenizer:
        write_tokenizer(folder, vocab)
    return read(folder)


def _write_shards(
    folder: Path, packed: Mapping[str, tuple[str, tuple[int, ...], bytes]], shards: int
) -> None:
    if shards == 1:
        write_safetensors(folder / "model.safetensors", packed)
        return
    names, where = list(packed), {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        write_safetensors(folder / file, {name: packed[name] for name in names[number::shards]})
        where |= dict.fromkeys(names[number::shards], file)
    size = sum(len(raw) for _, _, raw in packed.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_tokenizer(folder: Path, vocab: int) -> None:
    """A word-level tokenizer with the side files that come with one."""
    words = [*WORDS, *(f"w{i}" for i in range(vocab))][:vocab]
    special = [
        {
            "id": i,
            "content": words[i],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i in range(3)
    ]
    data = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unk>"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(data))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
            }
        )
    )
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))


def family(folder: Path, *names: str, **options: Any) -> dict[str, Model]:
    """A base and fine-tunes of it, by name."""
    base = write(folder / "base", seed=1, **options)
    found = {"base": base}
    for number, name in enumerate(names):
        found[name] = write(folder / name, seed=10 + number, near=base, spread=0.004, **options)
    return found


def numel(name_shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(prod(shape) for shape in name_shapes.values())
