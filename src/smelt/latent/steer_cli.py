"""``smelt latent steer``: make steering vectors, generate with them, convert and look at their files."""

from __future__ import annotations

import json as json_module
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smelt.core.errors import LatentError

if TYPE_CHECKING:
    from smelt.latent.steering import SteeringVector

STEER_APP = typer.Typer(
    name="steer",
    help="Steering vectors: make them from two models or from contrast prompts, use, convert, inspect.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


class Method(StrEnum):
    """How a direction is found between positive and negative states."""

    mean = "mean"
    pca_diff = "pca_diff"
    pca_center = "pca_center"


class Norm(StrEnum):
    """What length vectors get."""

    none = "none"
    unit = "unit"
    hidden = "hidden"


Model = Annotated[str, typer.Argument(help="Directory or hub name of the model.")]
Vectors = Annotated[list[str], typer.Argument(help="Vector files; FILE=0.5 gives one a weight.")]
Layers = Annotated[str | None, typer.Option(help="Layers such as 20 or 3,8-10; all by default.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, auto.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@STEER_APP.command()
def extract(
    model: Model,
    out: Annotated[Path, typer.Option(help="File to write: .safetensors or .gguf.")],
    donor: Annotated[str | None, typer.Option(help="Second model: the vector is donor minus model.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Prompts for --donor: text lines or JSONL.")] = None,
    positive: Annotated[Path | None, typer.Option(help="Prompts the vector points to.")] = None,
    negative: Annotated[Path | None, typer.Option(help="Prompts the vector points away from.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="JSONL of positive and negative.")] = None,
    method: Annotated[Method, typer.Option(help="How contrast prompts give a direction.")] = Method.mean,
    position: Annotated[str | None, typer.Option(help="all, last, first or a token index.")] = None,
    layers: Layers = None,
    norm: Annotated[Norm, typer.Option(help="Length of the vectors.")] = Norm.none,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts per forward.")] = 8,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Make a steering vector: from two models and prompts, or from contrast prompts and one model.

    Example: smelt latent steer extract base/ --donor tuned/ --prompts prompts.txt --out delta.safetensors

    Example: smelt latent steer extract base/ --pairs pairs.jsonl --method pca_diff --out calm.safetensors
    """
    from smelt.latent.steer_files import parse_layers, parse_position

    _check_sources(donor, prompts, positive, negative, pairs)
    common: dict[str, Any] = {"layers": parse_layers(layers), "norm": norm.value, "batch_size": batch_size}
    if position is not None:
        common["position"] = parse_position(position)
    if donor is not None:
        vector = _from_models(model, donor, prompts, dtype, device, common)
    else:
        vector = _from_contrast(
            model, positive, negative, pairs, dtype, device, {**common, "method": method.value}
        )
    if out.suffix == ".gguf" and layers is None:
        vector.to_gguf(out, drop_early=True)
    else:
        vector.save(out)
    _report(out, vector, json)


def _check_sources(donor: Any, prompts: Any, positive: Any, negative: Any, pairs: Any) -> None:
    two_models = donor is not None and prompts is not None and not (positive or negative or pairs)
    contrast = (pairs is not None) != (positive is not None and negative is not None) and not (
        donor or prompts
    )
    lone = (positive is None) != (negative is None)
    if (two_models or contrast) and not lone:
        return
    expected = "--donor with --prompts, or --positive with --negative, or --pairs"
    raise LatentError("these options do not say what to compare", expected=expected)


def _from_models(
    model: str, donor: str, prompts: Path | None, dtype: Any, device: Any, common: dict[str, Any]
) -> SteeringVector:
    from smelt.latent.model_cache import get_model, get_tokenizer
    from smelt.latent.steer_files import read_prompts
    from smelt.latent.steering_extract import extract_difference

    assert prompts is not None
    texts = read_prompts(prompts)
    base, tuned = (get_model(name, dtype=dtype, device=device) for name in (model, donor))
    return extract_difference(base, tuned, get_tokenizer(model), texts, **common)


def _from_contrast(
    model: str, positive: Any, negative: Any, pairs: Any, dtype: Any, device: Any, common: dict[str, Any]
) -> SteeringVector:
    from smelt.latent.model_cache import get_model, get_tokenizer
    from smelt.latent.steer_files import read_pairs, read_prompts
    from smelt.latent.steering_extract import extract_contrast

    sides = read_pairs(pairs) if pairs is not None else (read_prompts(positive), read_prompts(negative))
    return extract_contrast(
        get_model(model, dtype=dtype, device=device), get_tokenizer(model), *sides, **common
    )


@STEER_APP.command()
def apply(
    model: Model,
    vectors: Vectors,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A prompt; may repeat.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Prompts: text lines or JSONL.")] = None,
    alpha: Annotated[float, typer.Option(help="Strength of the sum of all vectors.")] = 1.0,
    layers: Layers = None,
    generated_only: Annotated[bool, typer.Option(help="Leave the prompt as it is.")] = False,
    keep_norm: Annotated[bool, typer.Option(help="Give every state its length back.")] = False,
    raw: Annotated[bool, typer.Option(help="Take texts as they are, without the chat template.")] = False,
    baseline: Annotated[bool, typer.Option(help="Also generate without the vectors.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.9,
    seed: Annotated[int, typer.Option(help="Seed of the first prompt; the next has seed + 1.")] = 0,
    dtype: Dtype = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Generate text with one or more steering vectors added.

    Example: smelt latent steer apply base/ calm.safetensors=0.8 -p "How was your day?" --baseline
    """
    from smelt.latent.steer_files import parse_layers, read_prompts, weighted_sum

    texts = [*(prompt or []), *(read_prompts(prompts) if prompts else [])]
    if not texts:
        raise LatentError("no prompts", expected="--prompt or --prompts")
    vector = weighted_sum(vectors, parse_layers(layers))
    how = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    scope = {"apply_to_all_tokens": not generated_only, "keep_norm": keep_norm}
    messages = [
        text if raw or not isinstance(text, str) else [{"role": "user", "content": text}] for text in texts
    ]
    rows = _answers(model, vector, messages, alpha, scope, how, baseline, (dtype, device))
    for text, row in zip(texts, rows, strict=True):
        _print_answer({"prompt": text, **row}, json)


def _answers(
    model: str, vector: SteeringVector, messages: list[Any], alpha: float, scope: dict[str, Any],
    how: dict[str, Any], baseline: bool, place: tuple[Any, Any],
) -> list[dict[str, str]]:  # fmt: skip
    from smelt.latent.model_cache import get_model, get_tokenizer
    from smelt.latent.reference import chat_generate, delta_generate

    loaded, tokenizer = get_model(model, dtype=place[0], device=place[1]), get_tokenizer(model)
    steered = delta_generate(loaded, tokenizer, vector, messages, alpha, **scope, **how)
    plain = chat_generate(loaded, tokenizer, messages, **how) if baseline else []
    rows = [{"steered": text} for text in steered]
    return [{**row, "baseline": text} for row, text in zip(rows, plain, strict=True)] if baseline else rows


def _print_answer(row: dict[str, Any], json: bool) -> None:
    if json:
        typer.echo(json_module.dumps(row, ensure_ascii=False))
        return
    for name, text in row.items():
        typer.secho(f"{name}:", bold=True)
        typer.echo(text if isinstance(text, str) else json_module.dumps(text, ensure_ascii=False))
    typer.echo()


@STEER_APP.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A .safetensors or .gguf file of vectors.")],
    target: Annotated[Path, typer.Argument(help="File to write: .safetensors or .gguf.")],
    layers: Layers = None,
    scale: Annotated[float, typer.Option(help="Multiply all vectors.")] = 1.0,
    unit: Annotated[bool, typer.Option(help="Give every vector length 1 first.")] = False,
    at: Annotated[
        str, typer.Option(help="What layer numbers of a foreign dict mean: input or output.")
    ] = "input",
    n_layers: Annotated[
        int | None, typer.Option(help="Layers of the model, where the file does not say.")
    ] = None,
    drop_early: Annotated[
        bool, typer.Option(help="Leave out layers 0 and 1, which GGUF has no place for.")
    ] = False,
    json: Json = False,
) -> None:
    """Convert between safetensors, plain layer dicts, and GGUF control vectors of repeng and llama.cpp.

    Example: smelt latent steer convert happy.gguf happy.safetensors
    """
    from smelt.latent.steer_files import parse_layers
    from smelt.latent.steering import SteeringVector

    vector = SteeringVector.load(source, at=at, n_layers=n_layers)
    chosen = parse_layers(layers)
    vector = vector if chosen is None else vector.select(chosen)
    vector = (vector.normalised() if unit else vector) * scale
    if target.suffix == ".gguf":
        vector.to_gguf(target, drop_early=drop_early)
    else:
        vector.save(target)
    _report(target, vector, json)


@STEER_APP.command()
def show(file: Annotated[Path, typer.Argument(help="A file of vectors.")], json: Json = False) -> None:
    """What a file of vectors holds: model, layers, lengths, how it was made.

    Example: smelt latent steer show calm.safetensors
    """
    from smelt.latent.steering import SteeringVector

    _report(file, SteeringVector.load(file), json)


def _report(path: Path, vector: SteeringVector, json: bool) -> None:
    facts = {
        "file": str(path),
        "model": vector.model,
        "model_type": vector.model_type,
        "n_layers": vector.n_layers,
        "hidden_size": vector.hidden_size,
        "made": dict(vector.made),
    }
    norms = vector.norms()
    if json:
        typer.echo(json_module.dumps({**facts, "norms": {str(k): v for k, v in norms.items()}}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for name, value in facts.items():
        if value not in ("", None, {}):
            console.print(f"{name.replace('_', ' ')}: {value}", highlight=False, markup=False)
    table = Table("layer", "length")
    for layer, length in norms.items():
        table.add_row(str(layer), f"{length:.4g}")
    console.print(table)
