"""Tensor names and shapes of tiny transformers models, built without weights, and of invented ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from smelt.core.types import TensorMeta

Model = tuple[dict[str, TensorMeta], dict[str, Any]]

TEXT = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 28,
}  # fmt: skip
PAIR = {
    "d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "vocab_size": 99, "pad_token_id": 0,
}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

CAUSAL: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {}, "qwen2": {}, "qwen3": {}, "gemma": {}, "gemma2": {}, "gemma3_text": {},
    "olmo2": {}, "cohere": {}, "granite": {}, "starcoder2": {}, "phi3": {}, "stablelm": {}, "glm4": {},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]}, "mamba": {"state_size": 4},
    "falcon": {"new_decoder_architecture": False, "num_kv_heads": 2},
    "gpt2": {"n_layer": 3, "n_embd": 32, "n_head": 4}, "gpt_neox": {"tie_word_embeddings": False},
    "bloom": {"n_layer": 3, "n_head": 4}, "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "mixtral": {"num_local_experts": 4}, "qwen3_moe": MOE, "phimoe": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4},
    "deepseek_v3": {
        "first_k_dense_replace": 1, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "q_lora_rank": 8,
        "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
        "moe_intermediate_size": 16, "num_key_value_heads": 4, "num_experts_per_tok": 2,
    },
}  # fmt: skip

OTHER: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": (
        "T5ForConditionalGeneration",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4,
         "vocab_size": 99},
    ),
    "bart": ("BartForConditionalGeneration", PAIR | {"encoder_layers": 2, "decoder_layers": 2}),
    "whisper": (
        "WhisperForConditionalGeneration",
        PAIR | {"encoder_layers": 2, "decoder_layers": 3, "num_mel_bins": 8},
    ),
    "llava": (
        "LlavaForConditionalGeneration",
        {
            "text_config": TEXT | {"model_type": "llama", "num_hidden_layers": 2},
            "vision_config": VISION | {"model_type": "clip_vision_model"},
            "image_token_index": 3,
        },
    ),
    "qwen2_vl": (
        "Qwen2VLForConditionalGeneration",
        {
            "text_config": TEXT | {"model_type": "qwen2_vl_text"},
            "vision_config": {"depth": 3, "embed_dim": 32, "num_heads": 4, "hidden_size": 32},
        },
    ),
    "bert": ("BertForMaskedLM", TEXT),
    "vit": ("ViTForImageClassification", VISION | {"num_hidden_layers": 3}),
}  # fmt: skip


def _metas(shapes: dict[str, tuple[int, ...]]) -> dict[str, TensorMeta]:
    return {
        name: TensorMeta(name, "BF16", shape, Path("model.safetensors"), 0) for name, shape in shapes.items()
    }


def _read(model: Any, config: Any) -> Model:
    """Names and shapes as they are saved: tied copies left out."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
    return _metas(shapes), json.loads(config.to_json_string(use_diff=False))


def causal(kind: str) -> Model:
    """A causal language model of three layers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    text = {key: value for key, value in TEXT.items() if kind != "falcon" or key != "head_dim"}
    config = AutoConfig.for_model(kind, **(text | CAUSAL[kind]))
    with torch.device("meta"):
        return _read(AutoModelForCausalLM.from_config(config), config)


def other(kind: str) -> Model:
    """A model with several stacks, or of another make."""
    import torch
    import transformers

    name, options = OTHER[kind]
    cls = getattr(transformers, name)
    config = cls.config_class(**options)
    with torch.device("meta"):
        return _read(cls(config), config)


def invented(layers: int = 5, *, vocab: int = 64, tied: bool = False) -> Model:
    """An architecture nobody has: odd names, one number style, experts inside layers."""
    shapes: dict[str, tuple[int, ...]] = {"soup.tokens": (vocab, 16)}
    for layer in range(layers):
        at = f"soup.rungs.{layer}"
        shapes |= {
            f"{at}.mix.core": (16, 16),
            f"{at}.calm.weight": (16,),
            f"{at}.pick.router.weight": (3, 16),
        }
        shapes |= {f"{at}.experts.{number}.body": (16, 16) for number in range(3)}
    shapes["soup.calm.weight"] = (16,)
    if not tied:
        shapes["words"] = (vocab, 16)
    return _metas(shapes), {"vocab_size": vocab, "n_layers": layers, "schedule": ["x"] * layers}


def custom(shapes: dict[str, tuple[int, ...]]) -> dict[str, TensorMeta]:
    """Tensors of given names and shapes."""
    return _metas(shapes)
