"""Clients that leave, servers that stop: nothing goes on generating for nobody, nothing is cut without a word."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from serve_kit import LiveServer, wait_until

from smelt.latent.openai_requests import Limits
from smelt.latent.request_pool import RequestPool
from smelt.latent.serving import Served

LONG = {"model": "blend", "messages": [{"role": "user", "content": "r:abcd>"}], "ignore_eos": True}


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_leaves_stops_its_generation(served: Served, slow: list[int], streaming: bool) -> None:
    with LiveServer(served, workers=1, limits=Limits(max_tokens=240)) as live, live.http() as http:
        if streaming:
            with http.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as answer:
                lines = answer.iter_lines()
                while '"content": "c"' not in next(lines):
                    pass
            left = len(slow)
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post("/v1/chat/completions", json=LONG, timeout=0.5)
            left = len(slow)
        wait_until(lambda: live.pool.running == 0, 5)
        assert 0 < len(slow) <= left + 10


def test_a_client_that_leaves_the_queue_is_never_generated_for(served: Served, slow: list[int]) -> None:
    with LiveServer(served, workers=1, limits=Limits(max_tokens=60)) as live, live.http() as http:
        with http.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as first:
            lines = first.iter_lines()
            next(lines)
            with pytest.raises(httpx.ReadTimeout):
                http.post("/v1/chat/completions", json=LONG, timeout=0.2)
            assert live.pool.queued <= 1
        wait_until(lambda: live.pool.running == live.pool.queued == 0, 10)
        assert len(slow) < 80


def test_health_counts(served: Served, slow: list[int]) -> None:
    with LiveServer(served, workers=1, limits=Limits(max_tokens=60)) as live, live.http() as http:
        assert http.get("/health").json() == {"status": "ok", "running": 0, "queued": 0}
        with http.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as first:
            lines = first.iter_lines()
            next(lines)
            assert http.get("/health").json()["running"] == 1


def test_stopping_lets_answers_finish_and_takes_no_new_ones(served: Served, slow: list[int]) -> None:
    with LiveServer(served, workers=1, grace=20) as live, live.http() as http:
        with http.stream(
            "POST", "/v1/chat/completions", json={**LONG, "stream": True, "max_tokens": 30}
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            live.server.handle_exit(signal.SIGTERM, None)
            rest = list(lines)
        assert rest[-2] == "data: [DONE]" and '"finish_reason": "length"' in "".join(rest)


def test_an_answer_that_takes_too_long_is_told_so(served: Served, slow: list[int]) -> None:
    with LiveServer(served, workers=1, grace=0.2) as live, live.http() as http:
        with http.stream(
            "POST", "/v1/chat/completions", json={**LONG, "stream": True, "max_tokens": 240}
        ) as answer:
            lines = answer.iter_lines()
            next(lines)
            live.server.handle_exit(signal.SIGTERM, None)
            rest = [line for line in lines if line]
        error = json.loads(rest[-1].removeprefix("data: "))["error"]
        assert error["code"] == "overloaded" and "shutting down" in error["message"]


def test_a_closed_pool_takes_nothing(served: Served) -> None:
    pool = RequestPool(1)
    pool.close()
    from smelt.latent.generating import Task
    from smelt.latent.request_pool import PoolFull

    with pytest.raises(PoolFull, match="shutting down"):
        pool.submit(served.blend, Task(((1,),), 1), print)


@pytest.mark.slow
def test_the_command_serves_and_stops_on_a_signal(pair_dir: Path, tmp_path: Path) -> None:
    """`smelt latent serve` as a process: it says where, answers, and is gone after SIGINT with exit code 0."""
    smelt = str(Path(sys.executable).with_name("smelt"))
    command = [smelt, "latent", "serve", "--base", str(pair_dir / "reverser")]
    command += [
        "--donor",
        str(pair_dir / "shifter"),
        "--layer",
        "last",
        "--port",
        "0",
        "--api-key-env",
        "KEY",
    ]
    environment = {**os.environ, "KEY": "secret", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[1]
            assert "API" in process.stdout.readline()
            assert process.stdout.readline() == "models: blend, base, donor\n"
            headers = {"authorization": "Bearer secret"}
            deadline = time.monotonic() + 30
            while True:
                try:
                    answer = httpx.post(
                        f"{url}v1/chat/completions",
                        json={"model": "blend", "messages": LONG["messages"], "temperature": 0},
                        headers=headers,
                    )
                    break
                except httpx.ConnectError:
                    assert time.monotonic() < deadline
            assert answer.json()["choices"][0]["message"]["content"] == "dcba"
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
            assert process.stdout.read() == "stopped\n"
            assert process.stderr is not None and process.stderr.read() == ""
        finally:
            process.kill()
