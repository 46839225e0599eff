"""The part of ``smelt latent serve`` that runs: checks, an open port, then the server."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smelt.core.errors import LatentError, MissingExtraError

if TYPE_CHECKING:
    from smelt.latent.serving import Served


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line asked for."""

    host: str
    port: int
    api_key_env: str | None
    hosts: tuple[str, ...]
    origins: tuple[str, ...]
    workers: int
    queue: int
    grace: float
    max_tokens: int

    @property
    def key(self) -> str | None:
        """The key that clients must send."""
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise LatentError(f"the variable {self.api_key_env} is not set", where="--api-key-env",
                              fix=f"export {self.api_key_env}=...")  # fmt: skip
        return key


def open_door(how: Settings) -> socket.socket:
    """The port, before minutes are spent on loading models."""
    for module in ("fastapi", "uvicorn"):
        try:
            __import__(module)
        except ImportError:
            raise MissingExtraError(module, "serve") from None
    from smelt.latent.server_run import Listening, listen

    how.key  # noqa: B018  (a missing key is told now)
    return listen(Listening(how.host, how.port, how.grace))


def run_server(served: Served, how: Settings, door: socket.socket) -> None:
    """Serve until told to stop."""
    from smelt.latent.openai_requests import Limits
    from smelt.latent.request_pool import RequestPool
    from smelt.latent.server_run import Listening, access_for, announce, serve

    where = Listening(how.host, how.port, how.grace)
    announce(served, where, door, how.key is not None)
    pool = RequestPool(how.workers, how.queue)
    access = access_for(how.host, how.key, how.hosts, how.origins)
    try:
        serve(served, pool, access, Limits(how.max_tokens), where, door)
    except KeyboardInterrupt:  # the server has stopped in good order before it says this
        print("stopped")
