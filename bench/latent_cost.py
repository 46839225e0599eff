"""Cost of one decode step of a latent merge against the base alone: prints JSON, then a markdown table.

    python -m bench.latent_cost [--rounds 60] [--width 512] [--layers 28] [--device cpu] [--out FILE.json]

One CPU thread, variants interleaved (every round runs one step of each, in rotating order), medians over
rounds. The prediction is 1 + L/n for a site at layer L of n: the donor runs only the layers below its last
site.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from smelt.latent import LatentMergedForCausalLM, Site

CONTEXT = 32


def make(seed: int, width: int, layers: int, device: str) -> Any:
    """A random Llama, narrow but with layers that cost far more than the Python around them."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers, num_attention_heads=8,
        num_key_value_heads=4, vocab_size=512, max_position_embeddings=4096,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().to(device)


def plain(model: Any, ids: torch.Tensor) -> Callable[[], None]:
    """One decode step of an ordinary model on its own growing cache."""
    cache = DynamicCache(config=model.config)
    model(ids, past_key_values=cache)
    token = ids[:, -1:]
    return lambda: model(token, past_key_values=cache)


def merged(base: Any, donor: Any, sites: list[Site], ids: torch.Tensor) -> Callable[[], None]:
    """One decode step of a latent merge."""
    return plain(LatentMergedForCausalLM.from_models(base, donor, sites), ids)


def reference_style(base: Any, donor: Any, layer: int, ids: torch.Tensor) -> Callable[[], None]:
    """Two whole models stepped one after the other, a hook carrying the donor's state over (no
    truncation)."""
    caches = [DynamicCache(config=model.config) for model in (donor, base)]
    held: list[torch.Tensor] = []

    def carry(module: Any, args: Any, kwargs: Any) -> None:
        held[:] = [args[0]]

    def mix(module: Any, args: Any, kwargs: Any) -> Any:
        return (0.5 * args[0] + 0.5 * held[0], *args[1:]), kwargs

    def step(tokens: torch.Tensor = ids[:, -1:]) -> None:
        hooks = [
            donor.model.layers[layer].register_forward_pre_hook(carry, with_kwargs=True),
            base.model.layers[layer].register_forward_pre_hook(mix, with_kwargs=True),
        ]
        try:
            for model, cache in zip((donor, base), caches, strict=True):
                model(tokens, past_key_values=cache)
        finally:
            for hook in hooks:
                hook.remove()

    step(ids)
    return step


def share_lower(base: Any, donor: Any, count: int) -> Any:
    """Make the donor's embeddings and first layers equal to the base's, as after a fine-tune with frozen
    layers."""
    donor.model.embed_tokens.load_state_dict(base.model.embed_tokens.state_dict())
    for mine, theirs in zip(base.model.layers[:count], donor.model.layers[:count], strict=True):
        theirs.load_state_dict(mine.state_dict())
    return donor


def variants(width: int, layers: int, device: str) -> dict[str, tuple[float | None, Callable[[], None]]]:
    """Name -> (predicted cost, one step)."""
    base, donor = make(1, width, layers, device), make(2, width, layers, device)
    ids = torch.randint(0, 512, (1, CONTEXT), generator=torch.Generator().manual_seed(0)).to(device)
    table: dict[str, tuple[float | None, Callable[[], None]]] = {
        "base alone": (1.0, plain(base, ids)),
        "wrapper, ratio 0": (1.0, merged(base, donor, [Site(layers, "slerp", [0.0])], ids)),
    }
    for layer in sorted({1, layers // 4, layers // 2, layers * 5 // 7, layers - 1, layers}):
        table[f"slerp at {layer}"] = (
            1 + layer / layers,
            merged(base, donor, [Site(layer, "slerp", [0.5])], ids),
        )
    three = [Site(layers * part // 4, "slerp", [0.5]) for part in (1, 2, 3)]
    table["slerp at 1/4, 1/2 and 3/4"] = (1.75, merged(base, donor, three, ids))
    kept = layers * 5 // 7
    frozen = share_lower(base, make(2, width, layers, device), kept)
    table[f"slerp at {layers}, first {kept} layers shared"] = (
        1 + (layers - kept) / layers, merged(base, frozen, [Site(layers, "slerp", [0.5])], ids),
    )  # fmt: skip
    table[f"two-model loop with hooks, at {layers // 2}"] = (
        None,
        reference_style(base, donor, layers // 2, ids),
    )
    return table


@torch.no_grad()
def measure(
    table: dict[str, tuple[float | None, Callable[[], None]]], rounds: int, device: str
) -> dict[str, list[float]]:
    """Seconds per step, interleaved."""
    names, times = list(table), {name: [] for name in table}
    for number in range(rounds + 5):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            table[name][1]()
            if device != "cpu":
                torch.cuda.synchronize()
            if number >= 5:
                times[name].append(time.perf_counter() - start)
    return times


def report(rounds: int = 60, width: int = 512, layers: int = 28, device: str = "cpu") -> dict[str, Any]:
    """The table as data. ``ratio`` is the median over rounds of step / base step of the same round."""
    with torch.no_grad():
        table = variants(width, layers, device)
    times = measure(table, rounds, device)
    base = times["base alone"]
    rows = []
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, base, strict=True))
        predicted = table[name][0]
        rows.append({
            "variant": name,
            "ms": round(1000 * statistics.median(seconds), 3),
            "ratio": round(ratio, 3),
            "predicted": None if predicted is None else round(predicted, 3),
            "over_prediction": None if predicted is None else round(ratio / predicted - 1, 4),
        })  # fmt: skip
    return {
        "bench": "latent_cost", "rounds": rounds, "width": width, "layers": layers, "device": device,
        "threads": torch.get_num_threads(), "torch": torch.__version__, "rows": rows,
    }  # fmt: skip


def markdown(result: dict[str, Any]) -> str:
    """The table for a person."""
    lines = [
        "| variant | ms per token | against base | 1 + L/n | difference |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        predicted = "" if row["predicted"] is None else f"{row['predicted']:.2f}"
        over = "" if row["over_prediction"] is None else f"{100 * row['over_prediction']:+.1f} %"
        lines.append(f"| {row['variant']} | {row['ms']:.2f} | {row['ratio']:.2f} | {predicted} | {over} |")
    return "\n".join(lines)


def page(result: dict[str, Any]) -> str:
    """docs/latent_cost.md: the table, and where it was measured."""
    from bench.machine import facts, sentence

    shape = f"{result['layers']} layers, width {result['width']}, {result['threads']} thread, {result['rounds']} rounds"
    head = "# What a latent merge costs\n\nWritten by `make bench` (`python -m bench.latent_cost`)."
    how = f"One decode step against the base alone; {shape}, variants interleaved, medians."
    why = "The donor runs only the layers below its last site, so the expected cost is 1 + L/n; shared layers run once."
    return f"{head} {how}\n{sentence(facts())}\n\n{markdown(result)}\n\n{why}\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--docs", type=Path, help="write the table as a page, e.g. docs/latent_cost.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = report(options.rounds, options.width, options.layers, options.device)
    print(json.dumps(result))
    print(markdown(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    if options.docs:
        options.docs.write_text(page(result))


if __name__ == "__main__":
    main()
