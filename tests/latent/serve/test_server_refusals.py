"""What the server does not do, it says: in OpenAI's form, with the field and what to write instead."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from serve_kit import LiveServer, wait_until

from smelt.latent.openai_requests import Limits
from smelt.latent.server_app import PAGE, Access
from smelt.latent.serving import Served

HELLO = [{"role": "user", "content": "r:abcd>"}]


@pytest.fixture(scope="module")
def http(server: LiveServer) -> Iterator[httpx.Client]:
    with server.http() as one:
        yield one


def refused(
    http: httpx.Client, status: int = 400, path: str = "chat/completions", **body: Any
) -> dict[str, Any]:
    answer = http.post(f"/v1/{path}", json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"temprature": 1}, "temprature", "did you mean 'temperature'"),
        ({"latent": {"site": []}}, "latent.site", "did you mean 'sites'"),
        ({"latent": {"sites": [{"layer": 2, "oper": "lerp"}]}}, "latent.sites", "did you mean 'op'"),
        ({"latent": {"sites": [{"layer": 2, "op": "slurp"}]}}, "latent.sites", "did you mean 'slerp'"),
        ({"latent": {"sites": [{"op": "slerp"}]}}, "latent.sites", "layer"),
        ({"layer": 9}, "latent", "expected 0..4"),
        ({"layer": -1}, "latent", "negative"),
        ({"beta": [0.1, 0.2]}, "latent", "2 weights for 1 donors"),
        ({"beta": 0.5, "latent": {"beta": 0.5}}, "beta", "both given"),
        ({"scope": "some"}, "latent", "unknown scope"),
        ({"op": "proxy"}, "latent", "two donors"),
        ({"model": "base", "beta": 0.5}, "latent", "mean nothing to 'base'"),
        ({"temperature": 3}, "temperature", "temperature is 3; expected less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", "expected a valid number"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 65}, "n", "at most 64 answers"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens", "give one"),
        ({"stop": ""}, "stop", "empty stop string"),
        ({"stop": 5}, "stop", "expected a valid string or a valid list"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "ids from 0 to 263"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5", "less than or equal to 100"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        ({"tools": [{"type": "function"}]}, "tools", "tool calls are not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "only text"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "usr", "content": "x"}]}, "messages.0.role", "'user'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content", "'text'"),
        ({"messages": None}, "messages", "valid list"),
        ({"chat_template_kwargs": {"tokenize": False}}, "chat_template_kwargs", "tokenize"),
        ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs", "'chat_template'"),
    ],
)  # fmt: skip
def test_bad_fields(http: httpx.Client, body: dict[str, Any], param: str, message: str) -> None:
    error = refused(http, **{"model": "blend", "messages": HELLO, **body})
    assert error["param"] == param and message in error["message"]
    assert error["type"] == "invalid_request_error"


def test_all_problems_come_at_once(http: httpx.Client) -> None:
    error = refused(http, model="blend", top_p=7, n="two", streem=True)
    for part in ("'messages' is missing", "top_p is 7", "n is 'two'", "did you mean 'stream'"):
        assert part in error["message"]


@pytest.mark.parametrize(
    ("body", "param"),
    [({"echo": True}, "echo"), ({"best_of": 3}, "best_of"), ({"suffix": "x"}, "suffix"), ({"prompt": []}, "prompt"),
     ({"prompt": [-5]}, "prompt"), ({"prompt": [[1], []]}, "prompt"), ({"prompt": ""}, "prompt")],
)  # fmt: skip
def test_bad_completions(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    error = refused(http, path="completions", **{"model": "blend", "prompt": "x", **body})
    assert error["param"] == param


def test_unknown_models(http: httpx.Client, client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean 'blend'") as caught:
        client.chat.completions.create(model="bland", messages=HELLO)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


def test_a_prompt_that_does_not_fit(http: httpx.Client) -> None:
    long = [{"role": "user", "content": "a" * 256}]
    error = refused(http, 413, model="blend", messages=long)
    assert error["code"] == "context_length_exceeded" and "256 in all" in error["message"]
    error = refused(http, 413, model="blend", messages=HELLO, max_tokens=250)
    assert error["param"] == "max_tokens" and "7 tokens and 250 more" in error["message"]
    whole = http.post(
        "/v1/chat/completions",
        json={"model": "base", "messages": HELLO, "max_tokens": 249, "ignore_eos": True, "temperature": 0},
    )
    assert whole.json()["usage"]["total_tokens"] == 256  # the last place is used too


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"beta": NaN}', b"\xff", b"[" * 100_000])
def test_bodies_that_are_no_json_object(http: httpx.Client, content: bytes) -> None:
    answer = http.post("/v1/chat/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and "body is" in answer.json()["error"]["message"]


def test_a_body_without_end(http: httpx.Client) -> None:
    pieces = (b" " * 2**20 for _ in range(20))
    answer = http.post("/v1/completions", content=pieces, headers={"content-type": "application/json"})
    assert answer.status_code == 413 and "too large" in answer.json()["error"]["message"]


def test_paths_and_methods(http: httpx.Client) -> None:
    for method, path, status in [("GET", "/v2", 404), ("GET", "/v1/chat/completions", 405), ("GET", "/docs", 404),
                                 ("GET", "/page/../serving.py", 404)]:  # fmt: skip
        answer = http.request(method, path)
        assert answer.status_code == status and "message" in answer.json()["error"]


def test_a_foreign_page_cannot_ask(http: httpx.Client) -> None:
    """A form or a script elsewhere can send plain text without asking first, and name another host."""
    body = json.dumps({"model": "base", "messages": HELLO})
    simple = http.post("/v1/chat/completions", content=body, headers={"content-type": "text/plain"})
    assert simple.status_code == 415
    other = http.get("/v1/models", headers={"host": "evil.example"})
    assert other.status_code == 403 and "evil.example" in other.json()["error"]["message"]
    asked = http.options(
        "/v1/chat/completions",
        headers={"origin": "http://evil.example", "access-control-request-method": "POST"},
    )
    assert "access-control-allow-origin" not in asked.headers
    assert (
        "access-control-allow-origin"
        not in http.get("/v1/models", headers={"origin": "http://evil.example"}).headers
    )


def test_a_key_and_an_origin_that_may(served: Served) -> None:
    access = Access("secret", frozenset(), ("http://friend.example",))
    with LiveServer(served, access=access) as live, live.http() as http:
        for header in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "secret"},
            {"authorization": "Basic secret"},
        ):
            answer = http.get("/v1/models", headers=header)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        assert http.get("/health").status_code == http.get("/").status_code == 200
        with live.openai() as client:
            assert len(list(client.models.list())) == 3
        with live.openai() as client, pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()
        asked = http.options(
            "/v1/chat/completions",
            headers={"origin": "http://friend.example", "access-control-request-method": "POST",
                     "access-control-request-headers": "authorization,content-type"},
        )  # fmt: skip
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == "http://friend.example"


def test_a_tokenizer_without_template_takes_completions(served: Served, monkeypatch: Any) -> None:
    monkeypatch.setattr(served.voice("base").tokenizer, "chat_template", None)
    with LiveServer(served) as live, live.http() as http:
        error = refused(http, model="base", messages=HELLO)
        assert "no chat template" in error["message"] and "/v1/completions" in error["message"]
        assert http.get("/v1/latent").json()["chat"] is False


def test_a_template_that_refuses(served: Served, monkeypatch: Any) -> None:
    template = "{{ raise_exception('Roles must alternate') }}"
    monkeypatch.setattr(served.voice("base").tokenizer, "chat_template", template)
    with LiveServer(served) as live, live.http() as http:
        error = refused(http, model="base", messages=HELLO)
        assert "Roles must alternate" in error["message"] and error["param"] == "messages"


def test_a_fault_inside_is_a_500_without_its_inside(served: Served, monkeypatch: Any, caplog: Any) -> None:
    """Before the first token and in the middle of a stream."""
    with LiveServer(served) as live, live.http() as http:
        monkeypatch.setattr(type(served.voice("base").model), "prepare_inputs_for_generation", _broken(0))
        error = refused(http, 500, model="base", messages=HELLO)
        assert error["type"] == "server_error" and "secret path" not in error["message"]
        monkeypatch.undo()
        original = type(served.voice("base").model).prepare_inputs_for_generation
        monkeypatch.setattr(
            type(served.voice("base").model), "prepare_inputs_for_generation", _broken(3, original)
        )
        with live.openai() as client, pytest.raises(openai.APIError, match="something went wrong"):
            for _ in client.chat.completions.create(model="base", messages=HELLO, stream=True, temperature=0):
                pass
        monkeypatch.undo()
        assert http.get("/health").json() == {"status": "ok", "running": 0, "queued": 0}


def _broken(after: int, original: Any = None) -> Any:
    calls = 0

    def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise RuntimeError("secret path /root/x")
        return original(self, *args, **kwargs)

    return prepare


def test_a_full_queue_says_come_back(served: Served, slow: list[int]) -> None:
    with LiveServer(served, workers=1, waiting=0, limits=Limits(max_tokens=50)) as live, live.http() as http:
        body = {"model": "blend", "messages": HELLO, "stream": True, "ignore_eos": True}
        with http.stream("POST", "/v1/chat/completions", json=body) as first:
            lines = first.iter_lines()
            assert next(lines)
            answer = http.post("/v1/chat/completions", json={"model": "blend", "messages": HELLO})
            assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["code"] == "overloaded"
        wait_until(lambda: http.get("/health").json()["running"] == 0)
        assert (
            http.post("/v1/chat/completions", json={"model": "blend", "messages": HELLO}).status_code == 200
        )


def test_every_file_of_the_page_is_packaged() -> None:
    import tomllib
    from pathlib import Path

    data = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    patterns = data["tool"]["setuptools"]["package-data"]["smelt"]
    for name, _ in PAGE.values():
        assert f"**/*{Path(name).suffix}" in patterns
