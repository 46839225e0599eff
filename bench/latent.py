"""Latent merging of tiny trained models against every baseline, over several seeds -> docs/latent.md.

    python -m bench.latent [--seeds 4] [--steps 260] [--quick] [--docs docs]

Each seed trains an ancestor on two synthetic skills, then one model further on each skill; blends, weight
merges, ensembles and stitched models of the two are chosen on one set of prompts and measured on another.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from tokenizers.decoders import Fuse
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bench.latent_page import Run, write_page
from smelt.latent.baselines import Arena
from smelt.latent.sweep import Step, run_sweep
from smelt.latent.sweep_data import Sample
from smelt.latent.sweep_grid import Grid
from smelt.latent.sweep_measure import How

LETTERS = "abcdefgh"
LENGTH = 4
SKILLS = ("reverse", "shift")
LAYERS = 4


@dataclass(frozen=True, slots=True)
class Setup:
    """How much of everything."""

    seeds: int = 4
    ancestor_steps: int = 100
    steps: int = 260
    select: int = 64  # prompts of each skill to choose on
    report: int = 128  # other prompts of each skill to measure on
    width: int = 64
    kept: tuple[float, ...] = (
        0.0,
        0.03,
    )  # share of the other skill in a model's own training; one regime each

    @property
    def grid(self) -> Grid:
        """Every place in a model of four layers, and all its layers at once."""
        sites = (*map(str, range(LAYERS)), "last", "+".join([*map(str, range(1, LAYERS)), "last"]))
        return Grid(sites, ("lerp", "slerp", "regmean"), (0.25, 0.5, 0.75))


QUICK = Setup(seeds=2, ancestor_steps=30, steps=60, select=8, report=16, width=32, kept=(0.03,))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *LETTERS, *"rs:>"]
    inner = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(dict.fromkeys(words))}, "<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def solve(skill: str, word: str) -> str:
    """The right answer.

    >>> solve("reverse", "abcd"), solve("shift", "abch")
    ('dcba', 'bcda')
    """
    if skill == "reverse":
        return word[::-1]
    return "".join(LETTERS[(LETTERS.index(letter) + 1) % len(LETTERS)] for letter in word)


def question(skill: str, word: str) -> str:
    """As a model reads it."""
    return f"{skill[0]}:{word}>"


def split_words(seed: int, setup: Setup) -> tuple[list[str], list[str], set[str]]:
    """Words to choose on, words to measure on, and both: training never sees one of them."""
    draw = random.Random(seed)
    words: list[str] = []
    while len(words) < setup.select + setup.report:
        word = "".join(draw.choices(LETTERS, k=LENGTH))
        words += [] if word in words else [word]
    return words[: setup.select], words[setup.select :], set(words)


def samples(words: Sequence[str]) -> list[Sample]:
    """Both skills on the same words."""
    return [
        Sample(f"{skill}-{word}", question(skill, word), question(skill, word), solve(skill, word), skill)
        for skill in SKILLS
        for word in words
    ]


def train(
    model: LlamaForCausalLM, shares: Sequence[float], steps: int, seed: int, held_out: set[str]
) -> LlamaForCausalLM:
    """A short training on both skills in these shares, on words that are not held out."""
    draw, tokenizer = random.Random(seed), make_tokenizer()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    head = LENGTH + 3  # tokens of a question
    for _ in range(steps):
        lines = []
        while len(lines) < 32:
            skill, word = draw.choices(SKILLS, shares)[0], "".join(draw.choices(LETTERS, k=LENGTH))
            lines += [] if word in held_out else [question(skill, word) + solve(skill, word)]
        ids = torch.tensor([[*tokenizer(line)["input_ids"], tokenizer.eos_token_id] for line in lines])
        labels = ids.clone()
        labels[:, :head] = -100
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def make_pair(
    seed: int, setup: Setup, held_out: set[str], kept: float
) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """Two models with one ancestor, each trained further on one skill and a share of the other."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=setup.width, intermediate_size=2 * setup.width,
        num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    ancestor = train(LlamaForCausalLM(config), (0.5, 0.5), setup.ancestor_steps, 10 * seed, held_out)
    pair = []
    for number in range(2):
        shares = (1 - kept, kept) if number == 0 else (kept, 1 - kept)
        child = copy.deepcopy(ancestor).train()
        pair.append(train(child, shares, setup.steps, 10 * seed + 1 + number, held_out))
    return pair[0], pair[1]


def run_seed(seed: int, setup: Setup, folder: Path, kept: float) -> Run:
    """Train, sweep, choose, measure."""
    begun = time.monotonic()
    choose, measure, held_out = split_words(seed, setup)
    base, donor = make_pair(seed, setup, held_out, kept)
    trained = time.monotonic()
    arena = Arena(base, donor, make_tokenizer(), SKILLS)
    how = How(max_tokens=LENGTH + 1, form="plain", batch=128, metric_prompts=16, draws=200)

    def say(step: Step) -> None:
        print(f"\rseed {seed}: {step.done}/{step.total} {step.name:<40}", end="", file=sys.stderr)

    swept = run_sweep(arena, samples(choose), setup.grid, folder, how, report=samples(measure), on_change=say)
    took = f"trained in {trained - begun:.0f} s, swept in {time.monotonic() - trained:.0f} s"
    print(f"\rseed {seed}: {took:<60}", file=sys.stderr)
    return Run(seed, swept.rows, swept.report)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, help="how many pairs of models (default 4)")
    parser.add_argument("--steps", type=int, help="training steps on a model's own skill (default 260)")
    parser.add_argument("--quick", action="store_true", help="a smaller run that shows the path works")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="where latent.md and its plots go")
    given = parser.parse_args(arguments)
    setup = QUICK if given.quick else Setup()
    changes: dict[str, Any] = {name: getattr(given, name) for name in ("seeds", "steps")}
    setup = Setup(**{**{name: getattr(setup, name) for name in Setup.__slots__},
                     **{name: value for name, value in changes.items() if value}})  # fmt: skip
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="smelt-latent-bench-") as folder:
        regimes = {
            kept: [
                run_seed(seed, setup, Path(folder) / f"{kept}-{seed}", kept) for seed in range(setup.seeds)
            ]
            for kept in setup.kept
        }
    page = write_page(regimes, setup, given.docs)
    print(json.dumps({"page": str(page), "seeds": setup.seeds}))


if __name__ == "__main__":
    main()
