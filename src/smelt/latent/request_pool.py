"""Requests wait here and run side by side in threads; each can be cancelled, none can hold up a shutdown."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from smelt.core.errors import LatentError
from smelt.latent.generating import Delta, Outcome, Task, Voice, run

Event = Delta | Outcome | BaseException


class PoolFull(LatentError):
    """Too many requests wait already, or the pool closes; asking again later may help."""


class Ticket:
    """One request on its way."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.asked = time.monotonic()
        self.waited = 0.0  # seconds in the queue

    def cancel(self) -> None:
        """End it within one token, or before it starts."""
        self.cancelled.set()


class RequestPool:
    """``workers`` requests run at the same time over the same weights, ``waiting`` more may queue.

    Settings of a latent merge belong to the thread that generates, so requests never see each other's.
    """

    def __init__(self, workers: int = 4, waiting: int = 64) -> None:
        if workers < 1 or waiting < 0:
            found = f"{workers} workers and a queue of {waiting}"
            raise LatentError(found, expected="at least 1 worker and a queue of 0 or more")
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="smelt-answer")
        self._workers, self._waiting = workers, waiting
        self._lock = threading.Lock()
        self._open: set[Ticket] = set()
        self._running = 0
        self._closing = False

    @property
    def running(self) -> int:
        """Requests that generate now."""
        return self._running

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._open) - self._running

    @property
    def closing(self) -> bool:
        """Whether new requests are refused for good."""
        return self._closing

    def submit(self, voice: Voice, task: Task, tell: Callable[[Event], None]) -> Ticket:
        """Queue a task. ``tell`` is called from a worker thread: with deltas, then an outcome or an error."""
        ticket = Ticket()
        with self._lock:
            if self._closing:
                raise PoolFull("the server is shutting down")
            if len(self._open) >= self._workers + self._waiting:
                fix = "ask again in a moment, or start the server with a longer --queue"
                raise PoolFull(f"{len(self._open)} requests are running or waiting", fix=fix)
            self._open.add(ticket)
            self._threads.submit(self._work, ticket, voice, task, tell)
        return ticket

    def _work(self, ticket: Ticket, voice: Voice, task: Task, tell: Callable[[Event], None]) -> None:
        ticket.waited = time.monotonic() - ticket.asked
        with self._lock:
            self._running += 1
        event: Event
        try:
            event = run(voice, task, tell, ticket.cancelled)
        except BaseException as error:  # whatever it was, the one who asked hears of it
            event = error
        with self._lock:
            self._running -= 1
            self._open.discard(ticket)
        tell(event)

    def refuse(self) -> None:
        """Take no new requests; those that run or wait go on."""
        with self._lock:
            self._closing = True

    def cancel_all(self) -> None:
        """End everything within one token."""
        with self._lock:
            for ticket in self._open:
                ticket.cancel()

    def close(self) -> None:
        """Refuse, cancel, and wait for the threads."""
        self.refuse()
        self.cancel_all()
        self._threads.shutdown(wait=True)
