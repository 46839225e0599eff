"""Runs the web application until it is told to stop: first politely, then within seconds."""

from __future__ import annotations

import ipaddress
import socket
import sys
import threading
from dataclasses import dataclass
from typing import Any

import uvicorn

from smelt.core.errors import LatentError
from smelt.latent.openai_requests import Limits
from smelt.latent.request_pool import RequestPool
from smelt.latent.server_app import Access, build_app
from smelt.latent.serving import Served

LAST_WORDS = 3  # seconds for answers that were cancelled to say so


@dataclass(frozen=True, slots=True)
class Listening:
    """Where to listen, and how long running answers may go on once the server is asked to stop."""

    host: str = "127.0.0.1"
    port: int = 8000
    grace: float = 10.0


class Server(uvicorn.Server):
    """Asked once to stop: no new requests, running ones get ``grace`` seconds. Asked twice: stop now."""

    def __init__(self, config: uvicorn.Config, pool: RequestPool, grace: float) -> None:
        super().__init__(config)
        self._pool, self._grace = pool, grace

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A signal came."""
        again = self.should_exit
        self._pool.refuse()
        if again or self._grace <= 0:
            self._pool.cancel_all()
        else:
            timer = threading.Timer(self._grace, self._pool.cancel_all)
            timer.daemon = True
            timer.start()
        super().handle_exit(sig, frame)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def access_for(host: str, key: str | None, hosts: tuple[str, ...], origins: tuple[str, ...]) -> Access:
    """On a loopback address only requests that name this machine are answered.

    Otherwise a web page elsewhere could reach the models by pointing a name of its own at 127.0.0.1.
    """
    names = (
        frozenset({"localhost", "127.0.0.1", "::1", host, *hosts}) if is_loopback(host) else frozenset(hosts)
    )
    return Access(key, names, origins)


def listen(where: Listening) -> socket.socket:
    """The open socket; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    found = socket.socket(family)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((where.host, where.port))
    except OSError as error:
        found.close()
        raise LatentError(
            f"cannot listen: {error.strerror}",
            where=f"{where.host}:{where.port}",
            fix="choose another --port (0 takes a free one) or --host",
        ) from None
    found.listen(128)
    return found


def serve(
    served: Served, pool: RequestPool, access: Access, limits: Limits, where: Listening, door: socket.socket
) -> None:
    """Answer until a signal says stop."""
    app = build_app(served, pool, limits, access)
    config = uvicorn.Config(
        app,
        log_level="warning",
        timeout_graceful_shutdown=int(where.grace) + LAST_WORDS,
        server_header=False,
    )
    Server(config, pool, where.grace).run(sockets=[door])


def announce(served: Served, where: Listening, door: socket.socket, key: bool) -> None:
    """Say where to go, what answers, and what does not."""
    port = door.getsockname()[1]
    shown = f"[{where.host}]" if ":" in where.host else where.host
    print(f"page  http://{shown}:{port}/\nAPI   http://{shown}:{port}/v1", flush=True)
    print("models: " + ", ".join(served.voices), flush=True)
    for name, reason in served.missing.items():
        print(f"not served: {name}: {reason}", file=sys.stderr, flush=True)
    if not is_loopback(where.host) and not key:
        print(
            f"warning: who can reach {where.host} can use these models; set a key with --api-key-env",
            file=sys.stderr,
            flush=True,
        )
