"""An OpenAI-compatible server around a real tiny transformers model, run by the tests as its own process.

It counts what it was asked (``start``) and what it delivered (``done``, written after the reply was sent),
each under a hash of the request itself, so that a test can tell whether anything was judged twice.
"""

import argparse
import asyncio
import hashlib
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

LETTERS = "ABC"
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def vocabulary() -> dict[str, int]:
    """One token a byte, in a fixed order, so that tests know ids without loading the model."""
    from tokenizers.pre_tokenizers import ByteLevel

    return {symbol: index for index, symbol in enumerate(sorted(ByteLevel.alphabet()))}


def letter_bias(letters: str = LETTERS) -> dict[str, int]:
    """The ``logit_bias`` that leaves only these letters to choose from."""
    ids = vocabulary()
    return {str(ids[letter]): 100 for letter in letters}


class TinyChat:
    """A two-layer Llama over bytes, with random weights large enough that its choice depends on the text."""

    def __init__(self) -> None:
        import torch
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

        torch.set_num_threads(1)
        torch.manual_seed(5)  # a seed whose choices among A, B and C vary with the text
        inner = Tokenizer(models.BPE(vocab=vocabulary(), merges=[]))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        inner.decoder = decoders.ByteLevel()
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=CHAT)
        config = LlamaConfig(
            vocab_size=len(vocabulary()), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=16384,
            initializer_range=0.7,
            bos_token_id=None, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        self.model = LlamaForCausalLM(config).eval()

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """One chat completion, greedy, with logit bias and the first token's log-probabilities."""
        import torch

        text = self.tokenizer.apply_chat_template(body["messages"], tokenize=False)
        ids = self.tokenizer(text, return_tensors="pt").input_ids
        bias = torch.zeros(self.model.config.vocab_size)
        for token, value in body.get("logit_bias", {}).items():
            bias[int(token)] += float(value)
        new: list[int] = []
        first = torch.zeros(0)
        with torch.inference_mode():
            for _ in range(body.get("max_tokens", 16)):
                logits = self.model(torch.cat([ids, torch.tensor([new], dtype=torch.long)], dim=1)).logits[
                    0, -1
                ]
                scores = torch.log_softmax(logits + bias, dim=-1)
                first = scores if not new else first
                new.append(int(scores.argmax()))
        logprobs = None
        if body.get("logprobs"):
            values, tokens = first.topk(body.get("top_logprobs", 1))
            top = [
                {"token": self.tokenizer.decode([token]), "logprob": value, "bytes": None}
                for token, value in zip(tokens.tolist(), values.tolist(), strict=True)
            ]
            logprobs = {"content": [top[0] | {"top_logprobs": top}]}
        return self.completion(body["model"], self.tokenizer.decode(new), logprobs, ids.shape[1], len(new))

    def completion(self, model: str, text: str, logprobs: Any, asked: int, said: int) -> dict[str, Any]:
        """The reply in OpenAI's form."""
        return {
            "id": "chatcmpl-tiny", "object": "chat.completion", "created": int(time.time()), "model": model,
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length",
                 "logprobs": logprobs}
            ],
            "usage": {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said},
        }  # fmt: skip


def fail(status: int, message: str, **headers: str) -> Any:
    """An error as OpenAI words it."""
    from fastapi.responses import JSONResponse

    return JSONResponse({"error": {"message": message, "type": "error", "code": None}}, status, headers)


def build_app(options: argparse.Namespace) -> Any:
    """The web application."""
    from fastapi import BackgroundTasks, FastAPI, Request

    chat, app = TinyChat(), FastAPI()
    log = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    busy = 0

    def note(event: str, asked: str) -> None:
        os.write(log, f"{event} {asked}\n".encode())

    @app.post("/v1/chat/completions")
    async def complete(request: Request, tasks: BackgroundTasks) -> Any:
        nonlocal busy
        body = await request.json()
        asked = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        if request.headers["authorization"] == "Bearer wrong":
            note("refused", asked)
            return fail(401, "the key is wrong")
        if body["model"] not in options.models:
            note("refused", asked)
            return fail(404, f"no model {body['model']!r}")
        if sum(len(message["content"]) for message in body["messages"]) > options.context:
            note("refused", asked)
            return fail(400, f"longer than {options.context} bytes")
        if busy >= options.most_in_flight:
            note("throttled", asked)
            return fail(429, "too many requests", **{"retry-after-ms": "50"})
        busy += 1
        note("start", asked)
        note("busy", str(busy))
        note("key", request.headers["idempotency-key"])
        try:
            await asyncio.sleep(options.delay)
            reply = chat.answer(body)
        finally:
            busy -= 1
        tasks.add_task(note, "done", asked)  # runs after the reply was sent
        return reply

    return app


def main() -> None:
    """Serve until killed; writes the port to ``--ready`` once it listens."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ready", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["tiny", "tiny-2"])
    parser.add_argument("--delay", type=float, default=0.02)
    parser.add_argument("--context", type=int, default=20_000)
    parser.add_argument("--most-in-flight", type=int, default=6)
    options = parser.parse_args()
    app = build_app(options)
    import uvicorn

    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", options.port))
    listener.listen(64)
    options.ready.write_text(str(listener.getsockname()[1]))
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    sys.exit(main())
