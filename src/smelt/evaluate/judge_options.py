"""The options that every judging command shares: defined once, flattened into each command's own."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from smelt.core.errors import EvaluationError

if TYPE_CHECKING:
    from smelt.evaluate.session import Plan

ASK, TRY, SPEND, SHOW = "How to ask", "How hard to try", "What it may cost", "Figures and output"


class VerdictMode(StrEnum):
    """How a verdict is read."""

    text = "text"
    logprob = "logprob"


class ScoringMode(StrEnum):
    """What a verdict is worth."""

    win = "win"
    graded = "graded"


class TokensField(StrEnum):
    """What the endpoint calls the limit on an answer's length."""

    max_tokens = "max_tokens"
    max_completion_tokens = "max_completion_tokens"


def _option(panel: str, help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeOptions:
    """Everything about the judge, the requests, the limits and the figures."""

    judge_model: Annotated[
        list[str], _option(ASK, "Model id of the judge; repeat for a panel.", "--judge-model")
    ]
    out: Annotated[Path | None, _option(SHOW, "File of judgements; running again continues it.", "--out")] = (
        None
    )
    base_url: Annotated[str | None, _option(ASK, "OpenAI-compatible endpoint, usually ending in /v1.")] = None
    api_key_env: Annotated[str, _option(ASK, "Environment variable that holds the key.")] = "OPENAI_API_KEY"
    template: Annotated[
        str | None, _option(ASK, "pairwise, arena (5 levels), letter, choice, or a .toml file.")
    ] = None
    verdict: Annotated[VerdictMode, _option(ASK, "Read the words, or the first letter's probability.")] = (
        VerdictMode.text
    )
    max_tokens: Annotated[
        int | None, _option(ASK, "Longest reply; the template's own limit if not given.", min=1)
    ] = None
    tokens_field: Annotated[TokensField, _option(ASK, "What the endpoint calls that limit.")] = (
        TokensField.max_tokens
    )
    temperature: Annotated[float, _option(ASK, "Sampling temperature of the judge.", min=0.0)] = 0.0
    no_temperature: Annotated[bool, _option(ASK, "Send no temperature.", "--no-temperature")] = False
    seed: Annotated[int | None, _option(ASK, "Seed sent with every request.")] = None
    request_json: Annotated[
        str | None, _option(ASK, "More request fields, such as '{\"logit_bias\": {}}'.")
    ] = None
    max_chars: Annotated[
        int, _option(ASK, "Longest answer shown to the judge; the middle is cut.", min=3)
    ] = 24_000
    concurrency: Annotated[int, _option(TRY, "Requests in flight.", min=1)] = 8
    timeout: Annotated[float, _option(TRY, "Seconds to wait for one reply.", min=0.1)] = 120.0
    retries: Annotated[int, _option(TRY, "Failures of one request while others succeed.", min=1)] = 6
    patience: Annotated[float, _option(TRY, "Seconds without any reply before stopping.", min=0.1)] = 300.0
    max_requests: Annotated[int | None, _option(SPEND, "Send at most so many requests now.", min=0)] = None
    dry_run: Annotated[bool, _option(SPEND, "Count requests and tokens, send nothing.", "--dry-run")] = False
    tokenizer: Annotated[Path | None, _option(SPEND, "tokenizer.json of the judge, for exact counts.")] = None
    price_in: Annotated[float | None, _option(SPEND, "Price of a million prompt tokens.")] = None
    price_out: Annotated[float | None, _option(SPEND, "Price of a million answer tokens.")] = None
    scoring: Annotated[
        ScoringMode, _option(SHOW, "graded: a clear win counts more than a slight one (arena).")
    ] = ScoringMode.win
    draws: Annotated[int, _option(SHOW, "Bootstrap draws.", min=100)] = 4000
    stats_seed: Annotated[int, _option(SHOW, "Seed of the bootstrap.")] = 0
    as_json: Annotated[bool, _option(SHOW, "Print the report as JSON.", "--json")] = False
    quiet: Annotated[bool, _option(SHOW, "No progress, no page.", "--quiet", "-q")] = False

    def plan(self, default_out: str) -> Plan:
        """What these options ask for."""
        from smelt.evaluate.client import Endpoint
        from smelt.evaluate.runner import Limits
        from smelt.evaluate.session import Plan, make_judge

        judges = tuple(
            make_judge(
                model,
                template=self.template,
                logprob=self.verdict is VerdictMode.logprob,
                max_tokens=self.max_tokens,
                temperature=None if self.no_temperature else self.temperature,
                seed=self.seed,
                tokens_field=str(self.tokens_field),
                extra=_parse_fields(self.request_json),
                max_chars=self.max_chars,
            )
            for model in self.judge_model
        )
        limits = Limits(self.concurrency, self.timeout, self.retries, self.patience, self.max_requests)
        return Plan(
            judges=judges,
            out=self.out or Path(default_out),
            endpoint=Endpoint(self.base_url, self.api_key_env),
            limits=limits,
            scoring="graded" if self.scoring is ScoringMode.graded else "win",
            draws=self.draws,
            seed=self.stats_seed,
        )


def _parse_fields(text: str | None) -> dict[str, Any]:
    try:
        fields = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise EvaluationError(f"not JSON: {error.msg}", where="--request-json") from None
    if not isinstance(fields, dict):
        raise EvaluationError(f"a {type(fields).__name__}", where="--request-json", expected="an object")
    return fields


def with_judge_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose ``options: JudgeOptions`` is spelled out as options of its own."""
    shared = dict(inspect.signature(JudgeOptions, eval_str=True).parameters)
    own = dict(inspect.signature(command, eval_str=True).parameters)
    own.pop("options")

    @functools.wraps(command)
    def flat(**values: Any) -> None:
        options = JudgeOptions(**{name: values.pop(name) for name in shared if name in values})
        command(options=options, **values)

    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in (own | shared).values()]
    del flat.__dict__["__wrapped__"]
    flat.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {one.name: one.annotation for one in parameters}
    return flat
