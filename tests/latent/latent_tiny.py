"""Tiny real models for the latent tests: any architecture with random weights, a byte tokenizer, a trained
pair."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCAB = 264
CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
USUAL = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
    "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258, "tie_word_embeddings": False,
}  # fmt: skip
GPT = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 256, "vocab_size": VOCAB}
IDS = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
NO_GQA = {"num_key_value_heads": 4}
MOE = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {**GPT, **IDS, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "gptj": {**GPT, **IDS, "rotary_dim": 4},
    "codegen": {**GPT, **IDS, "rotary_dim": 4, "n_head": 4},
    "gpt_bigcode": {**GPT, **IDS},
    "gpt_neo": {**IDS, "vocab_size": VOCAB, "hidden_size": 32, "num_layers": 4, "num_heads": 4,
                "attention_types": [[["global", "local"], 2]], "window_size": 8,
                "max_position_embeddings": 256},
    "bloom": {**IDS, "vocab_size": VOCAB, "hidden_size": 32, "n_layer": 4, "n_head": 4},
    "falcon": {**IDS, "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 4,
               "num_attention_heads": 4},
    "mpt": {**IDS, "vocab_size": VOCAB, "d_model": 32, "n_heads": 4, "n_layers": 4, "expansion_ratio": 2},
    "opt": {**IDS, "vocab_size": VOCAB, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 4,
            "num_attention_heads": 4, "word_embed_proj_dim": 32, "max_position_embeddings": 256},
    "qwen2": {**USUAL, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
    "mistral": {**USUAL, "sliding_window": 8},
    "gemma2": {**USUAL, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {**USUAL, "sliding_window": 8, "query_pre_attn_scalar": 8, "sliding_window_pattern": 2},
    "phi3": {**USUAL, "num_key_value_heads": 2},
    "mixtral": {**USUAL, **MOE},
    "qwen3_moe": {**USUAL, **MOE},
    "olmoe": {**USUAL, **MOE, **NO_GQA},
    "gpt_neox": {**USUAL, "hidden_dropout": 0.0, "attention_dropout": 0.0},
    "persimmon": {**USUAL, **NO_GQA},
    "deepseek_v3": {**USUAL, **NO_GQA, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
                    "qk_nope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2,
                    "moe_intermediate_size": 24, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "jamba": {**USUAL, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "num_experts": 2,
              "use_mamba_kernels": False},
    "gemma3n_text": {**USUAL, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB,
                     "num_kv_shared_layers": 0, "laurel_rank": 8, "altup_num_inputs": 2,
                     "layer_types": ["sliding_attention", "full_attention"] * 2,
                     "activation_sparsity_pattern": [0.0] * 4, "intermediate_size": [48] * 4},
}  # fmt: skip


def tiny_config(model_type: str, **over: Any) -> Any:
    """A config small enough to run in milliseconds."""
    return AutoConfig.for_model(model_type, **{**SHAPES.get(model_type, USUAL), **over})


def tiny_causal(model_type: str = "llama", seed: int = 0, std: float = 0.12, **over: Any) -> Any:
    """A causal language model with random weights wide enough that logits differ clearly between seeds."""
    model = AutoModelForCausalLM.from_config(tiny_config(model_type, **over)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * std if parameter.ndim > 1 else parameter + 0.1 * noise)
    model.generation_config.pad_token_id = 258
    model.generation_config.bos_token_id = 256
    model.generation_config.eos_token_id = 257
    return model


def prompt(length: int = 7, rows: int = 1, seed: int = 0) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(3, 200, (rows, length), generator=torch.Generator().manual_seed(seed))


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, three special tokens, a chat template; built in this process."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<s>", "</s>", "<pad>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def skill_text(skill: str, generator: torch.Generator) -> tuple[str, str]:
    """A question and its answer: ``r`` reverses four letters, ``s`` moves each letter one on."""
    numbers = torch.randint(0, 8, (4,), generator=generator).tolist()
    word = "".join(chr(97 + number) for number in numbers)
    answer = word[::-1] if skill == "r" else "".join(chr(97 + (number + 1) % 8) for number in numbers)
    return f"{skill}:{word}>", answer


def skill_batch(skills: str, rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of questions with answers, and labels on the answers only."""
    generator = torch.Generator().manual_seed(seed)
    tokenizer = byte_tokenizer()
    ids, labels = [], []
    for row in range(rows):
        question, answer = skill_text(skills[row % len(skills)], generator)
        head, tail = tokenizer(question)["input_ids"], [*tokenizer(answer)["input_ids"], 257]
        ids.append(head + tail)
        labels.append([-100] * len(head) + tail)
    return torch.tensor(ids), torch.tensor(labels)


def train(model: Any, skills: str, steps: int, seed: int, rate: float = 3e-3) -> Any:
    """A short, seeded training on skills; returns the model."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        ids, labels = skill_batch(skills, 32, seed * 100_003 + step)
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def skill_accuracy(model: Any, skill: str, rows: int = 48, seed: int = 10_007, **call: Any) -> float:
    """Share of answers that are right in every letter when generated greedily."""
    ids, labels = skill_batch(skill, rows, seed)
    head = int((labels[0] == -100).sum())
    out = model.generate(ids[:, :head], attention_mask=torch.ones_like(ids[:, :head]), max_new_tokens=5,
                         min_new_tokens=5, do_sample=False, **call)  # fmt: skip
    return float((out[:, head : head + 4] == ids[:, head : head + 4]).all(1).float().mean())


def trained_pair(steps: int = 260, seed: int = 0) -> tuple[Any, Any, Any]:
    """(ancestor, model good at reversing, model good at shifting), trained here in a few seconds each."""
    ancestor = tiny_causal("llama", seed, std=0.05, hidden_size=64, intermediate_size=128, head_dim=16,
                           num_key_value_heads=4)  # fmt: skip
    train(ancestor, "rs", 100, seed + 1)
    pair = []
    for number, skill in enumerate("rs"):
        model = tiny_causal(
            "llama", seed, hidden_size=64, intermediate_size=128, head_dim=16, num_key_value_heads=4
        )
        model.load_state_dict(ancestor.state_dict())
        pair.append(train(model, skill, steps, seed + 2 + number))
    return ancestor, pair[0], pair[1]
