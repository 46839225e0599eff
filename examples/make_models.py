"""Make three tiny Llama models that can be merged: a base, one that adds digits, one that reverses letters.

    python examples/make_models.py FOLDER [--steps 500]

They share a character tokenizer and are trained for some seconds on the CPU; --steps 0 leaves them untrained.
"""

from __future__ import annotations

import argparse
import copy
import random
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tokenizers.decoders import Fuse
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LETTERS = "abcdefgh"
LENGTH = 16


def add_digits(draw: random.Random) -> str:
    """One line of the first skill."""
    a, b = draw.randrange(10), draw.randrange(10)
    return f"add {a} {b} is {a + b}."


def reverse_letters(draw: random.Random) -> str:
    """One line of the second skill."""
    word = "".join(draw.choices(LETTERS, k=3))
    return f"turn {word} is {word[::-1]}."


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character."""
    alphabet = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789 ."))
    vocab = {token: number for number, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *alphabet])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    skills: list,
    steps: int,
    rate: float,
    seed: int,
) -> None:
    """Plain next-character training."""
    draw = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for _ in range(steps):
        lines = [draw.choice(skills)(draw) + "</s>" for _ in range(48)]
        batch = tokenizer(
            lines, return_tensors="pt", padding="max_length", max_length=LENGTH + 4, truncation=True
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def make_models(folder: Path, steps: int) -> None:
    """Write base, math and letters below ``folder``."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # models this small only wait for a second thread
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    base = LlamaForCausalLM(config)
    train(
        base, tokenizer, [add_digits, reverse_letters], steps * 3 // 5, 4e-3, seed=1
    )  # half-way through both
    experts = {"base": base}
    for name, skill, seed in (("math", add_digits, 2), ("letters", reverse_letters, 3)):
        experts[name] = copy.deepcopy(base)
        train(experts[name], tokenizer, [skill], steps * 2 // 5, 5e-4, seed)
    for name, model in experts.items():
        model.to(torch.bfloat16).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    make_models(arguments.folder, arguments.steps)
    print(f"wrote base, math and letters below {arguments.folder}")
