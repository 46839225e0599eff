"""The web application: OpenAI endpoints over a blend, its base and its donors, and a page to talk to them."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from smelt.core.errors import LatentError, SmeltError
from smelt.latent.generating import Delta, Outcome, Voice
from smelt.latent.openai_replies import Reply
from smelt.latent.openai_requests import Ask, Limits, find_voice, read_chat, read_completion
from smelt.latent.openai_types import ApiError, error_body, status_of
from smelt.latent.request_pool import Event, PoolFull, RequestPool, Ticket
from smelt.latent.serving import Served
from smelt.latent.text_stream import TokenBytes

log = logging.getLogger("smelt.serve")
LARGEST_BODY = 16 * 2**20
PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/page/api.js": ("api.js", "text/javascript; charset=utf-8"),
    "/page/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
OPEN_PATHS = frozenset({"/health", *PAGE})
Read = Callable[[Any, Served, Limits], Ask]


@dataclass(frozen=True, slots=True)
class Access:
    """Who may ask: a key, host names that requests may use (empty: any), web origins besides our own page."""

    key: str | None = None
    hosts: frozenset[str] = frozenset()
    origins: tuple[str, ...] = ()


class ClientGone(Exception):
    """Nobody waits for this answer any more."""


@dataclass(eq=False)
class Desk:
    """Everything the endpoints share."""

    served: Served
    pool: RequestPool
    limits: Limits
    since: int = field(default_factory=lambda: int(time.time()))
    bytes_of: dict[str, TokenBytes] = field(default_factory=dict)

    def reply(self, ask: Ask) -> Reply:
        """Who writes the answer."""
        known = self.bytes_of.setdefault(ask.voice.name, TokenBytes(ask.voice.tokenizer))
        return Reply(ask, self.served, known)


class Line:
    """The events of one request as they come, and the news that its client left."""

    def __init__(self, request: Request) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._watch = asyncio.create_task(self._wait_for_goodbye(request))
        self.ticket: Ticket | None = None

    def tell(self, event: Event) -> None:
        """Called from the thread that generates."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self) -> Delta | Outcome:
        """The next event; errors are raised here."""
        event = await self._events.get()
        if isinstance(event, LatentError) and not isinstance(event, PoolFull):
            raise ApiError(str(event), 500)  # the request was fine: it has been checked
        if isinstance(event, BaseException):
            raise event
        return event

    def close(self) -> None:
        """Stop generating, if it still goes on, and stop listening."""
        if self.ticket is not None:
            self.ticket.cancel()
        self._watch.cancel()

    async def _wait_for_goodbye(self, request: Request) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self._events.put_nowait(ClientGone())


class EventStream(Response):
    """Server-sent events, ended when the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, pieces: AsyncIterator[str], line: Line) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._pieces, self._line = pieces, line

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send every piece as it comes."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for piece in self._pieces:
                await send({"type": "http.response.body", "body": piece.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except (ClientGone, OSError):
            pass
        finally:
            self._line.close()


def build_app(
    served: Served, pool: RequestPool, limits: Limits | None = None, access: Access | None = None
) -> FastAPI:
    """The application over what is loaded; closing it ends whatever still runs."""
    access = access or Access()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(pool.close)

    app = FastAPI(title="smelt", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    desk = Desk(served, pool, limits or Limits())
    _add_page(app)
    _add_information(app, desk)
    _add_generation(app, desk)
    _add_errors(app)
    app.add_middleware(Gate, access=access)
    if access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
    return app


class Gate:
    """Turns away wrong host names, wrong keys, and bodies that a foreign web page could send unasked."""

    def __init__(self, app: Any, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request through, or answer it."""
        if scope["type"] == "http":
            error = self._objection(Request(scope))
            if error is not None:
                await _error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _objection(self, request: Request) -> ApiError | None:
        host = request.url.hostname or ""
        if self._access.hosts and host not in self._access.hosts:
            return ApiError(
                f"requests for the host {host!r} are not answered here", 403, fix="start with --allow-host"
            )
        if request.url.path not in OPEN_PATHS and not self._has_key(request):
            return ApiError(
                "the API key is missing or wrong",
                401,
                code="invalid_api_key",
                expected="Authorization: Bearer KEY",
            )
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if request.method == "POST" and kind != "application/json":
            return ApiError(
                f"the content type is {kind or 'missing'!r}", 415, expected="Content-Type: application/json"
            )
        return None

    def _has_key(self, request: Request) -> bool:
        if self._access.key is None:
            return True
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode(), self._access.key.encode())
        return same and kind.lower() == "bearer"


def _add_page(app: FastAPI) -> None:
    folder = resources.files("smelt.latent") / "page"
    for path, (name, kind) in PAGE.items():
        content = (folder / name).read_bytes()

        def send(content: bytes = content, kind: str = kind) -> Response:
            return Response(content, media_type=kind, headers=PAGE_HEADERS)

        app.add_api_route(path, send, methods=["GET"], response_model=None)


def _add_information(app: FastAPI, desk: Desk) -> None:
    @app.get("/health")
    def health() -> dict[str, Any]:
        pool = desk.pool
        status = "closing" if pool.closing else "ok"
        return {"status": status, "running": pool.running, "queued": pool.queued}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [_card(voice, desk.since) for voice in desk.served.voices.values()],
            "missing": desk.served.missing,
        }

    @app.get("/v1/models/{name:path}")
    def model(name: str) -> dict[str, Any]:
        return _card(find_voice(desk.served, name), desk.since)

    @app.get("/v1/latent")
    def latent() -> dict[str, Any]:
        return desk.served.describe() | {"max_tokens": desk.limits.max_tokens}


def _card(voice: Voice, since: int) -> dict[str, Any]:
    return {
        "id": voice.name,
        "object": "model",
        "created": since,
        "owned_by": "smelt",
        "kind": voice.kind,
        "max_model_len": voice.context,
    }


def _add_generation(app: FastAPI, desk: Desk) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def chat(request: Request) -> Response:
        return await _answer(request, desk, read_chat)

    @app.post("/v1/completions", response_model=None)
    async def completions(request: Request) -> Response:
        return await _answer(request, desk, read_completion)


async def _answer(request: Request, desk: Desk, read: Read) -> Response:
    data = await _json(request)
    ask = await asyncio.to_thread(read, data, desk.served, desk.limits)
    reply = desk.reply(ask)
    line = Line(request)
    try:
        line.ticket = desk.pool.submit(ask.voice, ask.task, line.tell)
        first = await line.next()  # errors of the first step still get a status of their own
        if ask.stream:
            return EventStream(_pieces(desk, line, reply, first), line)
        outcome = await _outcome(line, first)
        body = reply.whole(outcome, line.ticket.waited)
    except ClientGone:
        line.close()
        return Response(status_code=499)
    except BaseException:
        line.close()
        raise
    line.close()
    return JSONResponse(body)


async def _outcome(line: Line, event: Delta | Outcome) -> Outcome:
    while isinstance(event, Delta):
        event = await line.next()
    if any(answer.finish == "cancelled" for answer in event.answers):
        raise PoolFull("the server is shutting down")
    return event


async def _pieces(desk: Desk, line: Line, reply: Reply, event: Delta | Outcome) -> AsyncIterator[str]:
    """The lines of a stream. An error becomes one of them: the status has long been sent."""
    try:
        for chunk in reply.opening():
            yield _data(chunk)
        while isinstance(event, Delta):
            if event.finish == "cancelled":
                raise PoolFull("the server is shutting down")
            piece = reply.chunk(event)
            if piece is not None:
                yield _data(piece)
            event = await line.next()
        last = reply.closing(event, line.ticket.waited if line.ticket else 0.0)
        if last is not None:
            yield _data(last)
    except (ClientGone, asyncio.CancelledError):
        raise
    except BaseException as error:
        _log_unexpected(error)
        yield _data(error_body(error))
        return
    yield "data: [DONE]\n\n"


def _data(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n\n"


async def _json(request: Request) -> Any:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > LARGEST_BODY:
            raise ApiError("the body is too large", 413, expected=f"at most {LARGEST_BODY} bytes")
    try:
        return json.loads(bytes(body), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"the body is not JSON: {error}") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(SmeltError)
    async def refused(request: Request, error: SmeltError) -> Response:
        return _error_response(error)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        text = {404: f"there is nothing at {request.url.path}", 405: f"{request.method} is not allowed here"}
        return _error_response(ApiError(text.get(error.status_code, str(error.detail)), error.status_code))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        return _error_response(error)


def _error_response(error: BaseException) -> Response:
    headers = {"retry-after": "1"} if isinstance(error, PoolFull) else {}
    if status_of(error) == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_body(error), status_of(error), headers)


def _log_unexpected(error: BaseException) -> None:
    if status_of(error) >= 500 and not isinstance(error, SmeltError):
        log.error("a request failed", exc_info=error)
