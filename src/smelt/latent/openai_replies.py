"""Answers in OpenAI's form: whole, or as the chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from smelt.latent.generating import Choice, Delta, Outcome
from smelt.latent.openai_requests import Ask
from smelt.latent.serving import Served
from smelt.latent.text_stream import TokenBytes

LEAST_LOGPROB = -9999.0  # JSON knows no minus infinity
OBJECTS = {"chat": "chat.completion", "completion": "text_completion"}


class Reply:
    """Writes the answer to one request."""

    def __init__(self, ask: Ask, served: Served, token_bytes: TokenBytes) -> None:
        self._ask, self._bytes = ask, token_bytes
        self._chat = ask.kind == "chat"
        self._latent = served.described(ask.blend) if ask.voice.kind == "blend" else None
        self._head = {
            "id": ("chatcmpl-" if self._chat else "cmpl-") + uuid.uuid4().hex[:24],
            "created": int(time.time()),
            "model": ask.voice.name,
            "system_fingerprint": served.fingerprint(ask.voice, ask.blend),
        }
        self._counts = [0] * ask.task.rows

    def whole(self, outcome: Outcome, waited: float) -> dict[str, Any]:
        """The body of an answer that does not stream."""
        choices = []
        for index, answer in enumerate(outcome.answers):
            said = (
                {"message": {"role": "assistant", "content": answer.text, "refusal": None}}
                if self._chat
                else {"text": answer.text}
            )
            logprobs = self._logprobs(answer.choices)
            choices.append({"index": index, **said, "logprobs": logprobs, "finish_reason": answer.finish})
        object_name = OBJECTS[self._ask.kind]
        body = {**self._head, "object": object_name, "choices": choices}
        return body | {"usage": self._usage(outcome), "smelt": self._extra(outcome, waited)}

    def opening(self) -> Iterator[dict[str, Any]]:
        """Chunks before the first text: who speaks."""
        if self._chat:
            for index in range(self._ask.task.rows):
                yield self._chunk(index, {"role": "assistant", "content": ""}, None, None)

    def chunk(self, delta: Delta) -> dict[str, Any] | None:
        """One piece of one answer, or None when there is nothing to say yet."""
        self._counts[delta.row] = delta.tokens
        if not delta.text and not delta.choices and delta.finish is None and not self._ask.usage_always:
            return None
        content = {"content": delta.text} if delta.text or delta.finish is None else {}
        said = content if self._chat else {"text": delta.text}
        return self._chunk(delta.row, said, self._logprobs(delta.choices), delta.finish)

    def closing(self, outcome: Outcome, waited: float) -> dict[str, Any] | None:
        """The last chunk: what it all cost, if the client asked."""
        if not self._ask.usage:
            return None
        body = {**self._head, "object": self._stream_object, "choices": []}
        return body | {"usage": self._usage(outcome), "smelt": self._extra(outcome, waited)}

    @property
    def _stream_object(self) -> str:
        return "chat.completion.chunk" if self._chat else "text_completion"

    def _chunk(self, row: int, said: dict[str, Any], logprobs: Any, finish: str | None) -> dict[str, Any]:
        choice = {"index": row, **({"delta": said} if self._chat else said)}
        choice |= {"logprobs": logprobs, "finish_reason": finish}
        body = {**self._head, "object": self._stream_object, "choices": [choice]}
        if self._ask.usage_always:
            return body | {"usage": self._counted(sum(self._counts))}
        return body | ({"usage": None} if self._ask.usage else {})

    def _usage(self, outcome: Outcome) -> dict[str, int]:
        return self._counted(sum(answer.tokens for answer in outcome.answers))

    def _counted(self, generated: int) -> dict[str, int]:
        asked = sum(len(prompt) for prompt in self._ask.task.prompts)
        return {
            "prompt_tokens": asked,
            "completion_tokens": generated,
            "total_tokens": asked + generated,
        }

    def _extra(self, outcome: Outcome, waited: float) -> dict[str, Any]:
        timing = outcome.timing
        return {
            "latent": self._latent,
            "seeds": [answer.seed for answer in outcome.answers],
            "seconds": {"queued": waited, "first_token": timing.first, "total": timing.total},
            "tokens_per_second": timing.rate,
        }

    def _logprobs(self, choices: Sequence[Choice]) -> dict[str, Any] | None:
        if self._ask.task.logprobs is None or (not choices and self._ask.stream):
            return None
        if self._chat:
            return {"content": [self._chat_logprob(choice) for choice in choices], "refusal": None}
        tops = [{self._text(token): _finite(value) for token, value in choice.top} for choice in choices]
        return {
            "tokens": [self._text(choice.token) for choice in choices],
            "token_logprobs": [_finite(choice.logprob) for choice in choices],
            "top_logprobs": tops if self._ask.task.logprobs else None,
            "text_offset": [choice.offset for choice in choices],
        }

    def _chat_logprob(self, choice: Choice) -> dict[str, Any]:
        own = self._token(choice.token, choice.logprob)
        return own | {"top_logprobs": [self._token(token, value) for token, value in choice.top]}

    def _token(self, token: int, value: float) -> dict[str, Any]:
        return {
            "token": self._text(token),
            "logprob": _finite(value),
            "bytes": list(self._bytes[token]),
        }

    def _text(self, token: int) -> str:
        return self._bytes[token].decode("utf-8", "replace")


def _finite(value: float) -> float:
    return max(value, LEAST_LOGPROB)
