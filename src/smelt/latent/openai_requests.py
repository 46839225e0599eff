"""OpenAI's requests turned into tasks: prompts encoded, limits kept, the blend's settings checked."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from smelt.core.errors import LatentError
from smelt.latent.generating import Sampling, Task, Voice
from smelt.latent.openai_types import (
    ApiError,
    ChatBody,
    CompletionBody,
    LatentBody,
    Message,
    StreamOptions,
    checked,
)
from smelt.latent.recipe import as_sites
from smelt.latent.serving import Blend, Served

Kind = Literal["chat", "completion"]
Row = tuple[int, ...]
COMPLETION_TOKENS = 16  # what the completions endpoint generates when no limit is given
TOO_LONG = "context_length_exceeded"
SHORTHAND = ("beta", "layer", "op", "scope")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for."""

    max_tokens: int = 512  # when a chat request names no limit
    rows: int = 64  # prompts times n
    stops: int = 32


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that can run."""

    kind: Kind
    voice: Voice
    task: Task
    blend: Blend
    stream: bool
    usage: bool
    usage_always: bool


def read_chat(data: Any, served: Served, limits: Limits) -> Ask:
    """A chat request, checked and written out by the model's chat template."""
    body = checked(ChatBody, data)
    voice = find_voice(served, body.model)
    messages = [_turn(message) for message in body.messages]
    prompt = _encode(served, voice, messages, "messages", _template(voice, body.chat_template_kwargs or {}))
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise ApiError(
            "max_tokens and max_completion_tokens are both given",
            param="max_tokens",
            fix="give one: they mean the same",
        )
    if body.top_logprobs and not body.logprobs:
        raise ApiError("top_logprobs needs logprobs: true", param="top_logprobs")
    report = (body.top_logprobs or 0) if body.logprobs else None
    limit = body.max_completion_tokens or body.max_tokens
    return _ask("chat", body, served, voice, [prompt], limit, report, limits)


def read_completion(data: Any, served: Served, limits: Limits) -> Ask:
    """A completion request: one prompt or several, as text or as token ids."""
    body = checked(CompletionBody, data)
    voice = find_voice(served, body.model)
    given: list[Any] = [body.prompt] if _single(body.prompt) else list(body.prompt)
    if not given:
        raise ApiError("no prompt", param="prompt", expected="a text, a list of texts, or token ids")
    prompts = [
        _known_ids(voice, item) if isinstance(item, list) else _encode(served, voice, item, "prompt", {})
        for item in given
    ]
    limit = body.max_tokens or COMPLETION_TOKENS
    return _ask("completion", body, served, voice, prompts, limit, body.logprobs, limits)


def _single(prompt: Any) -> bool:
    return isinstance(prompt, str) or bool(prompt and isinstance(prompt[0], int))


def find_voice(served: Served, name: str) -> Voice:
    """The model asked for, or a 404 that says what there is."""
    try:
        return served.voice(name)
    except LatentError as error:
        raise ApiError(str(error), 404, param="model", code="model_not_found") from None


def _turn(message: Message) -> dict[str, str]:
    text = message.content
    if isinstance(text, list):
        text = "\n".join(part.text for part in text)
    role = "system" if message.role == "developer" else message.role
    return {"role": role, "content": text} | ({"name": message.name} if message.name else {})


def _template(voice: Voice, given: dict[str, Any]) -> dict[str, Any]:
    """Variables of the template. A client must not bring a template of its own, or change how it is applied."""
    taken = set(inspect.signature(voice.tokenizer.apply_chat_template).parameters) & given.keys()
    if taken:
        found = f"chat_template_kwargs holds {min(taken)!r}"
        raise ApiError(found, param="chat_template_kwargs", expected="variables that the template reads")
    return given


def _encode(served: Served, voice: Voice, prompt: Any, field: str, template: Mapping[str, Any]) -> Row:
    try:
        return served.encode(voice, prompt, **template)
    except LatentError as error:
        if "has no chat template" in str(error):
            what = f"the tokenizer of {voice.name!r} has no chat template"
            raise ApiError(what, param=field, fix="use /v1/completions") from None
        raise ApiError(str(error), param=field) from None


def _known_ids(voice: Voice, ids: Sequence[int]) -> Row:
    rows = voice.vocabulary
    wrong = next((token for token in ids if not 0 <= token < rows), None)
    if wrong is not None or not ids:
        found = "an empty prompt" if wrong is None else f"token id {wrong}"
        raise ApiError(found, param="prompt", expected=f"ids from 0 to {rows - 1}")
    return tuple(ids)


def _ask(
    kind: Kind,
    body: Any,
    served: Served,
    voice: Voice,
    prompts: list[Row],
    limit: int | None,
    report: int | None,
    limits: Limits,
) -> Ask:
    copies = body.n or 1
    if len(prompts) * copies > limits.rows:
        raise ApiError(
            f"{len(prompts)} prompts times n={copies}", param="n", expected=f"at most {limits.rows} answers"
        )
    blend = _blend(body, voice)
    task = Task(
        prompts=tuple(prompts),
        max_tokens=_room(voice, prompts, limit, limits),
        copies=copies,
        sampling=_sampling(body, voice),
        stops=_stops(body.stop, limits),
        ignore_eos=bool(body.ignore_eos),
        logprobs=report,
        options=_options(served, voice, blend),
    )
    how = body.stream_options or StreamOptions()
    if body.stream_options is not None and not body.stream:
        raise ApiError("stream_options needs stream: true", param="stream_options")
    always = bool(how.continuous_usage_stats)
    return Ask(kind, voice, task, blend, bool(body.stream), bool(how.include_usage) or always, always)


def _room(voice: Voice, prompts: Sequence[Row], limit: int | None, limits: Limits) -> int:
    """Tokens to generate at most; refuses what cannot fit into the model's context."""
    longest = max(len(prompt) for prompt in prompts)
    if voice.context is None:
        return limit or limits.max_tokens
    left = voice.context - longest
    if left < 1 or (limit is not None and limit > left):
        asked = f" and {limit} more are asked for" if limit else ""
        raise ApiError(
            f"the prompt has {longest} tokens{asked}",
            413,
            param="messages" if limit is None or left < 1 else "max_tokens",
            code=TOO_LONG,
            expected=f"at most {voice.context} in all, the context of {voice.name!r}",
        )
    return limit or min(left, limits.max_tokens)


def _sampling(body: Any, voice: Voice) -> Sampling:
    rows = voice.vocabulary
    bias: dict[int, float] = {}
    for key, value in (body.logit_bias or {}).items():
        if not key.isdecimal() or int(key) >= rows:
            what = f"logit_bias names the token {key!r}"
            raise ApiError(what, param="logit_bias", expected=f"ids from 0 to {rows - 1}")
        bias[int(key)] = value
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(0, body.top_k or 0),
        min_p=body.min_p or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        logit_bias=bias,
        seed=body.seed,
    )


def _stops(stop: Any, limits: Limits) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if "" in stops:
        raise ApiError("an empty stop string", param="stop", fix="leave stop out")
    if len(stops) > limits.stops:
        raise ApiError(f"{len(stops)} stop strings", param="stop", expected=f"at most {limits.stops}")
    return stops


def _blend(body: Any, voice: Voice) -> Blend:
    """``latent: {...}`` and its short forms as one; saying the same thing in both places is an error."""
    inner = body.latent or LatentBody()
    values: dict[str, Any] = {}
    for name in SHORTHAND:
        short, long = getattr(body, name), getattr(inner, name)
        if short is not None and long is not None:
            raise ApiError(f"{name} and latent.{name} are both given", param=name, fix="give one of them")
        values[name] = long if short is None else short
    if isinstance(values["beta"], list):
        values["beta"] = tuple(values["beta"])
    sites = None if inner.sites is None else _sites(inner.sites)
    blend = Blend(sites=sites, enabled=inner.enabled is not False, **values)
    if voice.kind != "blend" and not blend.plain:
        raise ApiError(
            f"latent settings mean nothing to {voice.name!r}",
            param="latent",
            fix="ask the blend, or leave them out",
        )
    return blend


def _sites(items: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
    try:
        return as_sites(list(items))
    except (LatentError, TypeError, ValueError) as error:
        raise ApiError(_plain(error), param="latent.sites") from None


def _options(served: Served, voice: Voice, blend: Blend) -> dict[str, Any]:
    try:
        return served.options(voice, blend)
    except (LatentError, TypeError, ValueError) as error:
        raise ApiError(_plain(error), param="latent") from None


def _plain(error: Exception) -> str:
    """Of a missing key Python says ``Site.__init__() missing 1 required ...``; a client knows no Site."""
    return str(error).replace("Site.__init__()", "a site is").replace("positional argument", "key")
