"""A real server on a free port, in a thread, for the length of a ``with`` block."""

from __future__ import annotations

import threading
import time
from typing import Any

import httpx
import openai
import uvicorn

from smelt.latent.openai_requests import Limits
from smelt.latent.request_pool import RequestPool
from smelt.latent.server_app import Access, build_app
from smelt.latent.server_run import Listening, Server, access_for, listen
from smelt.latent.serving import Served

LAST_MESSAGE = "{{ messages[-1]['content'] }}"


class LiveServer:
    """``url`` is where it listens, ``pool`` what it runs on."""

    def __init__(
        self,
        served: Served,
        workers: int = 3,
        waiting: int = 64,
        limits: Limits | None = None,
        access: Access | None = None,
        grace: float = 5.0,
    ) -> None:
        self.served, self.pool, self.key = served, RequestPool(workers, waiting), (access and access.key)
        self._door = listen(Listening(port=0))
        self.port = self._door.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        app = build_app(served, self.pool, limits, access or access_for("127.0.0.1", None, (), ()))
        config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=8)
        self.server = Server(config, self.pool, grace)
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self._door]})

    def __enter__(self) -> LiveServer:
        self._thread.start()
        wait_until(lambda: self.server.started)
        return self

    def __exit__(self, *error: Any) -> None:
        self.pool.refuse()
        self.pool.cancel_all()
        self.server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive(), "the server did not stop"
        self._door.close()

    def openai(self, **options: Any) -> openai.OpenAI:
        """OpenAI's client, without retries."""
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=self.key or "none", max_retries=0, timeout=60, **options
        )

    def http(self, **options: Any) -> httpx.Client:
        """A plain client."""
        return httpx.Client(base_url=self.url, timeout=60, **options)


def wait_until(condition: Any, seconds: float = 20.0) -> None:
    """Wait for something to become true, or fail."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)
