"""One request to an OpenAI-compatible endpoint: what to send, and what each kind of failure means."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from enum import StrEnum
from time import time
from typing import Any

from smelt.core.errors import EvaluationError, MissingExtraError

LOOPBACK = ("http://127.", "http://localhost", "http://[::1]")
OWN_FIELDS = frozenset(
    {"model", "messages", "temperature", "max_tokens", "max_completion_tokens", "seed", "stream", "n"}
)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a judge answers. The key is read from the environment and never written anywhere."""

    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"

    @property
    def url(self) -> str:
        """The address requests go to."""
        return self.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"

    def key(self) -> str:
        """The API key; a server on this machine needs none."""
        found = os.environ.get(self.api_key_env, "").strip()
        if found:
            return found
        if self.url.startswith(LOOPBACK):
            return "none"
        raise EvaluationError(
            f"the environment variable {self.api_key_env} is not set",
            where=self.url,
            fix=f"export {self.api_key_env}=..., or name another variable with --api-key-env",
        )


@dataclass(frozen=True, slots=True)
class RequestParams:
    """What is sent beside the messages; part of every judgement's key."""

    max_tokens: int
    temperature: float | None = 0.0
    seed: int | None = None
    tokens_field: str = "max_tokens"  # newer models want max_completion_tokens
    top_logprobs: int = 0  # above 0: logprob mode
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.extra.keys() & OWN_FIELDS:
            raise EvaluationError(f"{name!r} in the extra request fields", fix=f"use the option for {name}")

    def as_fields(self) -> dict[str, Any]:
        """The request's fields beside model and messages."""
        fields: dict[str, Any] = {self.tokens_field: self.max_tokens, **self.extra}
        if self.temperature is not None:
            fields["temperature"] = self.temperature
        if self.seed is not None:
            fields["seed"] = self.seed
        if self.top_logprobs:
            fields |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        return fields


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back."""

    text: str | None
    finish_reason: str | None
    top: tuple[tuple[str, float], ...]  # likeliest first tokens with their log-probabilities
    prompt_tokens: int
    completion_tokens: int


class Kind(StrEnum):
    """What a failure asks for."""

    RETRY = "retry"  # this request may succeed later
    OUTAGE = "outage"  # no request will succeed until the endpoint is back
    REFUSED = "refused"  # this request never will
    FATAL = "fatal"  # no request ever will


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed attempt."""

    kind: Kind
    type: str
    message: str
    status: int | None = None
    wait: float | None = None  # seconds the server asked to wait

    def as_row(self) -> dict[str, Any]:
        """What the journal keeps."""
        return {"type": self.type, "status": self.status, "message": self.message}


class JudgeClient:
    """Sends requests; leaves retrying to its caller. Use it as ``async with``."""

    def __init__(self, endpoint: Endpoint, timeout: float) -> None:
        try:
            from openai import AsyncOpenAI
        except ImportError:
            raise MissingExtraError("openai", "eval") from None
        self.endpoint = endpoint
        self._client = AsyncOpenAI(
            base_url=endpoint.url, api_key=endpoint.key(), max_retries=0, timeout=timeout
        )

    async def __aenter__(self) -> JudgeClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(
        self, model: str, messages: list[dict[str, str]], params: RequestParams, key: str
    ) -> Reply | Failure:
        """One attempt. The key goes along as Idempotency-Key, for servers that keep their answers."""
        from openai import APIError

        fields = params.as_fields()
        extra = {name: fields.pop(name) for name in list(fields) if name in params.extra}
        try:
            answer = await self._client.chat.completions.create(
                model=model,
                messages=messages,  # type: ignore[arg-type]
                extra_body=extra or None,
                extra_headers={"Idempotency-Key": key},
                **fields,
            )
        except APIError as error:
            return classify(error)
        except ValueError as error:  # a body that is not the JSON it claims to be
            return Failure(Kind.RETRY, type(error).__name__, f"unreadable answer: {error}")
        return _reply(answer)


def _reply(answer: Any) -> Reply | Failure:
    choices = getattr(answer, "choices", None)
    if choices is None:
        message = f"the endpoint answers, but not as an OpenAI-compatible one: {str(answer)[:80]!r}"
        return Failure(Kind.FATAL, "NotAChatCompletion", message)
    if not choices:
        return Failure(Kind.RETRY, "NoChoices", "the answer holds no choices")
    choice, usage = choices[0], answer.usage
    content = choice.logprobs.content if choice.logprobs else None
    top = content[0].top_logprobs if content else ()
    return Reply(
        text=choice.message.content,
        finish_reason=choice.finish_reason,
        top=tuple((entry.token, entry.logprob) for entry in top),
        prompt_tokens=usage.prompt_tokens if usage else 0,
        completion_tokens=usage.completion_tokens if usage else 0,
    )


def classify(error: Any) -> Failure:
    """What an exception of the OpenAI client means for this request and for all others."""
    status = getattr(error, "status_code", None)
    name = type(error).__name__
    body = getattr(error, "body", None)
    said = body.get("message") if isinstance(body, dict) else None
    message = " ".join(str(said or getattr(error, "message", None) or error).split())[:500]
    if status is None:  # no answer at all: refused, reset, timed out
        kind = Kind.RETRY if name == "APITimeoutError" else Kind.OUTAGE
        return Failure(kind, name, message)
    wait = retry_after(error.response.headers)
    if status == 429:
        spent = getattr(error, "code", None) == "insufficient_quota"
        return Failure(Kind.FATAL if spent else Kind.OUTAGE, name, message, status, wait)
    if status in {401, 403, 404, 405, 410}:
        return Failure(Kind.FATAL, name, message, status)
    if status in {502, 503, 504, 529}:
        return Failure(Kind.OUTAGE, name, message, status, wait)
    if status >= 500 or status in {408, 409, 425}:
        return Failure(Kind.RETRY, name, message, status, wait)
    return Failure(Kind.REFUSED, name, message, status)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds a server asks to wait, from ``Retry-After-Ms`` or ``Retry-After`` (seconds or a date).

    >>> retry_after({"retry-after": "3"})
    3.0
    """
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(0.0, float(value) * scale)
        except ValueError:
            pass
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time())
        except ValueError:
            continue
    return None


def advice(failure: Failure) -> str:
    """What a person can do about a failure that stops the run."""
    text = failure.message
    if failure.status == 404:
        return "check --judge-model and --base-url (it usually ends in /v1)"
    if failure.status in {401, 403}:
        return "check the API key and what it may use"
    if "max_completion_tokens" in text:
        return "add --tokens-field max_completion_tokens"
    if "temperature" in text:
        return "add --no-temperature"
    if "logprobs" in text:
        return "this endpoint gives no log-probabilities: leave out --verdict logprob"
    if failure.type == "NotAChatCompletion":
        return "check --base-url (it usually ends in /v1)"
    return "see the endpoint's message"
