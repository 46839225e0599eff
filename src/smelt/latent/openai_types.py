"""The fields of OpenAI's requests, checked one by one, and errors in OpenAI's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from smelt.core.errors import LatentError, SmeltError, did_you_mean
from smelt.latent.request_pool import PoolFull

#: fields that change nothing here, whatever they say
IGNORED = frozenset(
    (
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
        "prompt_cache_retention", "parallel_tool_calls",
    )
)  # fmt: skip
#: fields that are refused unless they ask for what happens anyway
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "tools": (([],), "tool calls are not supported"),
    "tool_choice": (("none", "auto"), "tool calls are not supported"),
    "functions": (([],), "tool calls are not supported"),
    "function_call": (("none", "auto"), "tool calls are not supported"),
    "response_format": (({"type": "text"},), "only text can be produced"),
    "modalities": ((["text"],), "only text can be produced"),
    "audio": ((), "only text can be produced"),
    "prediction": ((), "predicted outputs are not supported"),
    "reasoning_effort": (("none",), "reasoning effort cannot be set; use chat_template_kwargs"),
    "web_search_options": ((), "there is no web search"),
    "verbosity": (("medium",), "verbosity cannot be set"),
    "echo": ((False,), "the prompt is not sent back; scoring a prompt is what lm-evaluation-harness is for"),
    "suffix": (("",), "text cannot be inserted before a suffix"),
    "best_of": ((1,), "best_of is not supported; use n and choose"),
}
Number = Annotated[float, Field(allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class ApiError(LatentError):
    """An answer other than 200."""

    def __init__(
        self,
        what: str,
        status: int = 400,
        *,
        param: str | None = None,
        code: str | None = None,
        expected: str = "",
        fix: str = "",
    ) -> None:
        super().__init__(what, expected=expected, fix=fix)
        self.status, self.param, self.code = status, param, code


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Strict):
    """``continuous_usage_stats`` puts the counts into every chunk."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class LatentBody(_Strict):
    """The blend of one request."""

    sites: list[dict[str, Any]] | None = None
    scope: str | None = None
    enabled: bool | None = None
    beta: Number | list[Number] | None = None
    layer: int | str | None = None
    op: str | None = None


class _Body(_Strict):
    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**63 - 2**17)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    latent: LatentBody | None = None
    beta: Number | list[Number] | None = None
    layer: int | str | None = None
    op: str | None = None
    scope: str | None = None


class TextPart(_Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None


class ChatBody(_Body):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class CompletionBody(_Body):
    """``POST /v1/completions``."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


def checked(shape: Any, data: Any) -> Any:
    if not isinstance(data, dict):
        raise ApiError(f"the body is a {type(data).__name__}", expected="a JSON object")
    data = {key: value for key, value in data.items() if key not in IGNORED}
    for name, (harmless, reason) in REFUSED.items():
        value = data.pop(name, None)
        if value is not None and value not in harmless:
            raise ApiError(f"{name}: {reason}", param=name, code="unsupported_parameter")
    try:
        return shape.model_validate(data)
    except ValidationError as error:
        raise _field_error(shape, error) from None


def _field_error(shape: Any, error: ValidationError) -> ApiError:
    """All problems in one message; unions complain once per member, which is once too often."""
    texts: dict[str, str] = {}
    for problem in error.errors(include_url=False, include_context=False):
        place = [str(part) for part in problem["loc"] if not _union_member(part)]
        path = ".".join(place)
        if problem["type"] == "extra_forbidden":
            known = _fields_at(shape, place[:-1])
            texts.setdefault(path, f"unknown field {path!r}; {did_you_mean(place[-1], known)}")
        elif problem["type"] == "missing":
            texts.setdefault(path, f"the field {path!r} is missing")
        elif path in texts:
            texts[path] += f" or {_wanted(problem['msg'])}"
        else:
            texts[path] = f"{path} is {_short(problem['input'])}; expected {_wanted(problem['msg'])}"
    return ApiError("; ".join(texts.values()), param=next(iter(texts)))


def _union_member(part: int | str) -> bool:
    """Parts of a location that name a type instead of a field."""
    return isinstance(part, str) and (part in {"str", "int", "float", "bool"} or "[" in part)


def _fields_at(shape: Any, place: Sequence[str]) -> list[str]:
    nested = {"latent": LatentBody, "stream_options": StreamOptions, "messages": Message}
    inner: Any = nested.get(place[0]) if place else None
    return sorted((inner or shape).model_fields)


def _wanted(message: str) -> str:
    return message.removeprefix("Input should be ")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def status_of(error: BaseException) -> int:
    """The HTTP status of an error."""
    if isinstance(error, ApiError):
        return error.status
    if isinstance(error, PoolFull):
        return 503
    return 400 if isinstance(error, SmeltError) else 500


def error_body(error: BaseException) -> dict[str, Any]:
    """An error in OpenAI's form. What went wrong inside is for the server's log, not for the client."""
    status = status_of(error)
    message = str(error) if isinstance(error, SmeltError) else "something went wrong inside the server"
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
    code = getattr(error, "code", None) or ("overloaded" if isinstance(error, PoolFull) else None)
    return {"error": {"message": message, "type": kind, "param": getattr(error, "param", None), "code": code}}
