"""Llama-shaped models as plain data: configs and tensor layouts of the benchmark sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers that fix a Llama model's tensors."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool = True

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes, in the order of the module tree."""
        kv = self.kv_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            yield at + "input_layernorm.weight", (self.hidden,)
            yield at + "self_attn.q_proj.weight", (self.hidden, self.hidden)
            yield at + "self_attn.k_proj.weight", (kv, self.hidden)
            yield at + "self_attn.v_proj.weight", (kv, self.hidden)
            yield at + "self_attn.o_proj.weight", (self.hidden, self.hidden)
            yield at + "post_attention_layernorm.weight", (self.hidden,)
            yield at + "mlp.gate_proj.weight", (self.intermediate, self.hidden)
            yield at + "mlp.up_proj.weight", (self.intermediate, self.hidden)
            yield at + "mlp.down_proj.weight", (self.hidden, self.intermediate)
        yield "model.norm.weight", (self.hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocab, self.hidden)

    @property
    def parameters(self) -> int:
        """Number of stored elements.

        >>> round(SIZES["1.24b"].parameters / 1e9, 2), round(SIZES["0.33b"].parameters / 1e9, 2)
        (1.24, 0.33)
        """
        return sum(prod(shape) for _, shape in self.tensors())

    def config(self, dtype: str) -> dict[str, Any]:
        """The ``config.json`` of a checkpoint of this shape."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 1,
            "dtype": dtype,
            "eos_token_id": 2,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": 4096,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_theta": 500000.0,
            "tie_word_embeddings": self.tied,
            "transformers_version": "4.57.0",
            "use_cache": True,
            "vocab_size": self.vocab,
        }


#: the sizes `make bench` knows; 1.24b and 3.2b have the shapes of Llama 3.2 1B and 3B
SIZES: dict[str, Shape] = {
    "tiny": Shape(hidden=64, layers=4, intermediate=160, heads=4, kv_heads=2, vocab=384),
    "small": Shape(hidden=256, layers=4, intermediate=704, heads=8, kv_heads=4, vocab=4096),
    "0.33b": Shape(hidden=1024, layers=12, intermediate=6144, heads=16, kv_heads=8, vocab=64128),
    "1.24b": Shape(hidden=2048, layers=16, intermediate=8192, heads=32, kv_heads=8, vocab=128256),
    "3.2b": Shape(hidden=3072, layers=28, intermediate=8192, heads=24, kv_heads=8, vocab=128256),
}

ALIASES: dict[str, str] = {"1b": "1.24b", "3b": "3.2b", "0.3b": "0.33b"}


def size_named(name: str) -> str:
    """The canonical name of a size.

    >>> size_named("3B")
    '3.2b'
    """
    name = name.lower()
    name = ALIASES.get(name, name)
    if name not in SIZES:
        raise SystemExit(f"unknown size {name!r}; known: {', '.join([*SIZES, *ALIASES])}")
    return name
