"""``smelt latent``: talk to a blend of models, let it answer files, serve it; judging, steering, sweeping."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smelt.cli._lazy import Elsewhere, LazyGroup

if TYPE_CHECKING:
    from smelt.latent.serving import Served

JUDGE, STEER, SWEEP = (
    "smelt.evaluate.judge_cli:JUDGE_APP",
    "smelt.latent.steer_cli:STEER_APP",
    "smelt.latent.sweep_cli:SWEEP_APP",
)


class LatentGroup(LazyGroup):
    """All commands of latent merging."""

    elsewhere = (
        Elsewhere("steer", "Extract, inspect and convert steering vectors.", STEER),
        Elsewhere("sweep", "Try sites, operators and ratios; tables and plots.", SWEEP, "sweep"),
        Elsewhere("experiment", "The published experiments on any models.", SWEEP, "experiment"),
        Elsewhere("judge", "Which of two systems answers better.", JUDGE, "judge"),
        Elsewhere("compare", "Rank several systems by a judge.", JUDGE, "compare"),
        Elsewhere("judge-bench", "How often a judge is right.", JUDGE, "judge-bench"),
        Elsewhere("judge-plan", "How many questions an effect needs.", JUDGE, "judge-plan"),
        Elsewhere("convert-responses", "Old pickled answers to a response file.", JUDGE, "convert-responses"),
    )


APP = typer.Typer(
    cls=LatentGroup,
    name="latent",
    help="Blend hidden states of two or more models while they generate.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
MODELS, BLEND, DECODING, NETWORK = "Models", "Blend", "Answers", "Network"


class Who(StrEnum):
    """Who answers a file."""

    blend = "blend"
    base = "base"
    donor = "donor"


class PromptFormat(StrEnum):
    """How prompts that are plain text reach the model."""

    auto = "auto"
    chat = "chat"
    plain = "plain"


def _option(panel: str, help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


Model = Annotated[str | None, _option(MODELS, "Directory saved by smelt, or a recipe file.", "--model", "-m")]
Base = Annotated[str | None, _option(MODELS, "Base model: directory or hub name.", "--base")]
Donors = Annotated[list[str] | None, _option(MODELS, "Donor model; repeat for several.", "--donor")]
Dtype = Annotated[str | None, _option(MODELS, "Such as bfloat16; as stored if not given.")]
Device = Annotated[str | None, _option(MODELS, "Such as cuda or cpu; cuda if there is one.")]
FullDonor = Annotated[
    bool,
    _option(
        MODELS,
        "Load all of a donor, so that it answers alone and sites may move; or only what the sites need.",
        "--full-donor/--lean-donor",
    ),
]
Layer = Annotated[str | None, _option(BLEND, "Where to blend: 20, 0.75n or last. Default 0.75n with --base.")]
Beta = Annotated[float | None, _option(BLEND, "Share of the donor. Default 0.5 with --base.")]
Op = Annotated[str | None, _option(BLEND, "lerp, slerp, regmean, task_vector, proxy. Default slerp.")]
Scope = Annotated[str | None, _option(BLEND, "Tokens that are blended: all or generated.")]
Temperature = Annotated[float, _option(DECODING, "0 is greedy.", min=0.0)]
TopP = Annotated[float, _option(DECODING, "Draw from the likeliest tokens only.", min=0.0, max=1.0)]
MaxTokens = Annotated[int, _option(DECODING, "Longest answer, in tokens.", min=1)]
System = Annotated[str, _option(DECODING, "System prompt.")]


@APP.command()
def chat(
    model: Model = None,
    base: Base = None,
    donor: Donors = None,
    layer: Layer = None,
    beta: Beta = None,
    op: Op = None,
    scope: Scope = None,
    temperature: Temperature = 0.7,
    top_p: TopP = 1.0,
    max_tokens: MaxTokens = 512,
    seed: Annotated[int | None, _option(DECODING, "The same draws every time.", min=0)] = None,
    system: System = "",
    plain: Annotated[bool, _option(DECODING, "Send lines as they are.", "--plain")] = False,
    full_donor: FullDonor = True,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Talk to a blend in the terminal; /beta 0.7, /layer 20, /op lerp, /compare change it while you talk.

    Example: smelt latent chat --base Qwen/Qwen2.5-7B-Instruct --donor open-thoughts/OpenThinker3-7B
    """
    served = _load(model, base, donor, layer, beta, op, scope, full_donor, dtype, device)
    from rich.console import Console

    from smelt.latent.chat import Chat, Conversation, history_file, line_reader
    from smelt.latent.generating import Sampling

    how = Sampling(temperature=temperature, top_p=top_p, seed=seed)
    talk = Conversation(served, served.blend, sampling=how, max_tokens=max_tokens, system=system, plain=plain)
    console = Console()
    console.print(f"{', '.join(served.voices)}; {talk.describe()}; /help", style="dim", highlight=False)
    _say_missing(served)
    with line_reader(history_file()) as read:
        Chat(talk, console).run(read)


@APP.command()
def generate(
    prompts: Annotated[Path, typer.Option("--in", help="JSONL of id, prompt (or messages), source.")],
    out: Annotated[Path, typer.Option("--out", help="JSONL of answers; running again continues it.")],
    model: Model = None,
    base: Base = None,
    donor: Donors = None,
    layer: Layer = None,
    beta: Beta = None,
    op: Op = None,
    scope: Scope = None,
    by: Annotated[Who, _option(MODELS, "Who answers.")] = Who.blend,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    max_tokens: MaxTokens = 512,
    seed: Annotated[int, _option(DECODING, "Every row draws from this and its id.", min=0)] = 0,
    stop: Annotated[list[str] | None, _option(DECODING, "Text that ends an answer; repeat for more.")] = None,
    system: System = "",
    form: Annotated[
        PromptFormat, _option(DECODING, "Text prompts through the chat template or not.", "--format")
    ] = PromptFormat.auto,
    batch: Annotated[int, _option(DECODING, "Prompts answered together.", min=1)] = 8,
    skip_long: Annotated[
        bool, _option(DECODING, "Write prompts that do not fit with no answer.", "--skip-long")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew.")] = False,
    dtype: Dtype = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")] = False,
) -> None:
    """Answer a file of prompts: batched, seeded, resumable; the answers are what `smelt latent judge` reads.

    Example: smelt latent generate --model my-blend --in questions.jsonl --out slerp.jsonl
    """
    from smelt.cli._latent_generate import Request, run_generate
    from smelt.latent.batch import Job, read_prompts
    from smelt.latent.generating import Sampling

    rows = read_prompts(prompts)
    job = Job(
        Sampling(temperature, top_p), max_tokens, tuple(stop or ()), batch, seed, str(form), system, skip_long
    )
    lean = None if by is Who.blend else str(by)
    served = _load(model, base, donor, layer, beta, op, scope, False, dtype, device, alone=lean)
    run_generate(served, rows, Request(out, str(by), job, overwrite, as_json, quiet))


@APP.command()
def serve(
    model: Model = None,
    base: Base = None,
    donor: Donors = None,
    layer: Layer = None,
    beta: Beta = None,
    op: Op = None,
    scope: Scope = None,
    host: Annotated[str, _option(NETWORK, "Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, _option(NETWORK, "0 takes a free one.", min=0, max=65535)] = 8000,
    api_key_env: Annotated[
        str | None, _option(NETWORK, "Environment variable with the key that clients must send.")
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        _option(NETWORK, "Host name that requests may use; repeat for more."),
    ] = None,
    cors_origin: Annotated[
        list[str] | None, _option(NETWORK, "Origin of a web page that may call this; repeat for more.")
    ] = None,
    workers: Annotated[int, _option(NETWORK, "Requests that generate at the same time.", min=1)] = 4,
    queue: Annotated[int, _option(NETWORK, "Requests that may wait.", min=0)] = 64,
    grace: Annotated[float, _option(NETWORK, "Seconds for running answers after Ctrl-C.", min=0.0)] = 10.0,
    max_tokens: Annotated[
        int, _option(DECODING, "Longest answer where a chat request names no limit.", min=1)
    ] = 512,
    name: Annotated[str, _option(MODELS, "What clients call the blend.")] = "blend",
    full_donor: FullDonor = True,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Serve blend, base and donor at OpenAI's endpoints, with a page to talk to them side by side.

    Example: smelt latent serve --base Qwen/Qwen2.5-7B-Instruct --donor open-thoughts/OpenThinker3-7B
    """
    from smelt.cli._latent_serve import Settings, open_door, run_server

    how = Settings(host, port, api_key_env, tuple(allow_host or ()), tuple(cors_origin or ()), workers, queue,
                   grace, max_tokens)  # fmt: skip
    door = open_door(how)
    try:
        served = _load(model, base, donor, layer, beta, op, scope, full_donor, dtype, device, name)
        run_server(served, how, door)
    finally:
        door.close()


def _load(
    model: str | None,
    base: str | None,
    donor: list[str] | None,
    layer: str | None,
    beta: float | None,
    op: str | None,
    scope: str | None,
    full: bool,
    dtype: str | None,
    device: str | None,
    name: str = "blend",
    alone: str | None = None,
) -> Served:
    """The models, quietly: progress bars of other libraries say nothing to the one who asked."""
    from smelt.latent.recipe_choice import as_layer, pick_recipe
    from smelt.latent.serving import load, load_alone, quiet_loading

    recipe, folder = pick_recipe(
        model, base, donor or (), layer=as_layer(layer), beta=beta, op=op, scope=scope
    )
    with quiet_loading():
        if alone is not None:
            return load_alone(recipe, folder, kind=alone, dtype=dtype, device=device)
        return load(recipe, folder, full_donors=full, dtype=dtype, device=device, name=name)


def _say_missing(served: Served) -> None:
    for title, reason in served.missing.items():
        typer.echo(f"{title} does not answer: {reason}", err=True)
