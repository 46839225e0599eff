"""Runs judgements: many in flight, every finished one on disk, none asked again, outages waited out."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Literal

from smelt.core.errors import EvaluationError
from smelt.evaluate._text import digest, mend
from smelt.evaluate.client import Endpoint, Failure, JudgeClient, Kind, Reply, RequestParams, advice
from smelt.evaluate.journal import Journal, Record
from smelt.evaluate.prompts import Template, clean_answer, render
from smelt.evaluate.responses import Pair
from smelt.evaluate.verdicts import Verdict, parse_verdict, probability_verdict

Order = Literal["A_first", "B_first"]
ORDERS: tuple[Order, Order] = ("A_first", "B_first")
FIRST_BACKOFF, LAST_BACKOFF, LAST_KNOCK = 0.25, 20.0, 3.0  # seconds
REFUSED_AT_START = 5  # so many refusals and no answer: the request itself is wrong


@dataclass(frozen=True, slots=True)
class Judge:
    """A model, how it is asked, and with which parameters."""

    model: str
    template: Template
    params: RequestParams
    max_chars: int = 24_000

    def key(self, question: str, first: str, second: str) -> str:
        """What makes two requests the same judgement."""
        asked = [self.model, self.template.hash, question, first, second, self.params.as_fields()]
        return digest(asked)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: a pair in one order."""

    key: str
    judge: Judge
    pair_id: str
    order: Order
    question: str
    first: str
    second: str
    notes: dict[str, Any]  # lengths, cuts, source: what the journal says beside the verdict

    def messages(self) -> list[dict[str, str]]:
        """The chat messages, made when they are needed: thousands of asks may wait."""
        return render(self.judge.template, self.key, self.question, self.first, self.second)


@dataclass(frozen=True, slots=True)
class Limits:
    """How hard to try."""

    concurrency: int = 8
    timeout: float = 120.0  # seconds for one answer
    retries: int = 6  # failed attempts of one request while others succeed
    patience: float = 300.0  # seconds without any answer before the run stops
    max_requests: int | None = None

    def __post_init__(self) -> None:
        for name in ("concurrency", "timeout", "retries", "patience"):
            if getattr(self, name) <= 0:
                raise EvaluationError(f"{name} is {getattr(self, name)}", expected="more than 0")
        if self.max_requests is not None and self.max_requests < 0:
            raise EvaluationError(f"max_requests is {self.max_requests}", expected="0 or more")


@dataclass(slots=True)
class Progress:
    """What a run did so far."""

    total: int = 0  # judgements this comparison consists of, equal ones counted once
    reused: int = 0  # of them already in the file
    done: int = 0
    failed: int = 0
    sent: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def left(self) -> int:
        """Judgements that are still missing."""
        return self.total - self.reused - self.done

    def as_row(self) -> dict[str, Any]:
        """Plain data for a report. (``asdict`` would turn the counter into one of pairs.)"""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {
            "failures": dict(self.failures)
        }


def plan_asks(pairs: Iterable[Pair], judge: Judge) -> list[Ask]:
    """Both orders of every pair, but for pairs without an answer or with equal ones: nothing to judge."""
    asks = []
    for pair in pairs:
        if pair.a is None or pair.b is None:
            continue
        a, b = (clean_answer(text, pair.question, judge.max_chars) for text in (pair.a, pair.b))
        if a.text == b.text:
            continue
        question = mend(pair.question)
        for order in ORDERS:
            first, second = (a, b) if order == "A_first" else (b, a)
            notes = {
                "source": pair.source,
                "length_first": first.length,
                "length_second": second.length,
                "cut_first": first.cut,
                "cut_second": second.cut,
                "echo_removed": first.echo or second.echo,
                "control_marks": first.control_marks + second.control_marks,
            }
            key = judge.key(question, first.text, second.text)
            asks.append(Ask(key, judge, pair.id, order, question, first.text, second.text, notes))
    return asks


def pending(asks: Iterable[Ask], journal: Journal) -> list[Ask]:
    """The asks without a judgement, each key once."""
    waiting: dict[str, Ask] = {}
    for ask in asks:
        if ask.key not in journal.finished:
            waiting.setdefault(ask.key, ask)
    return list(waiting.values())


def run_asks(
    asks: Sequence[Ask],
    journal: Journal,
    endpoint: Endpoint,
    limits: Limits | None = None,
    on_change: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Ask for every judgement that the journal lacks. Stops with an error when no request can succeed.

    What was judged is on disk at any moment: calling this again continues and asks for nothing twice.
    """
    waiting = pending(asks, journal)
    total = len({ask.key for ask in asks})
    progress = Progress(total=total, reused=total - len(waiting))
    on_change(progress)
    if waiting:
        run = _Run(deque(waiting), journal, limits or Limits(), progress, on_change)
        _block_on(run.all(endpoint))
    return progress


def _block_on(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end, also from inside a notebook, whose own event loop is running."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()


class _Run:
    """One pass over the waiting asks."""

    def __init__(
        self,
        queue: deque[Ask],
        journal: Journal,
        limits: Limits,
        progress: Progress,
        on_change: Callable[[Progress], None],
    ) -> None:
        self.queue, self.journal, self.limits = queue, journal, limits
        self.progress, self.on_change = progress, on_change
        self.halted: EvaluationError | None = None
        self.halt_signal = asyncio.Event()
        self.trouble_since: float | None = None  # first failure after the last answer
        self.not_before = 0.0
        self.answers = 0

    async def all(self, endpoint: Endpoint) -> None:
        """The first ask alone, so that a wrong key or model costs one request; then all others."""
        async with JudgeClient(endpoint, self.limits.timeout) as client:
            self.client = client
            await self.settle(self.queue.popleft())
            workers = min(self.limits.concurrency, len(self.queue))
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self.work())
        if self.halted:
            raise self.halted

    async def work(self) -> None:
        while self.queue and not self.halted:
            await self.settle(self.queue.popleft())

    async def settle(self, ask: Ask) -> None:
        """Try until there is a judgement, the request is given up, or the run stops."""
        jitter = random.Random(ask.key)  # spreads retries, reproducibly
        attempts = counted = 0
        seen_answers = self.answers
        while await self.may_send():
            attempts += 1
            self.progress.sent += 1
            result = await self.client.ask(ask.judge.model, ask.messages(), ask.judge.params, ask.key)
            if isinstance(result, Reply):
                self.accept(ask, result, attempts)
                return
            self.progress.failures[result.type] += 1
            # while nobody gets an answer the endpoint is at fault, not this request
            if result.kind is Kind.RETRY or self.answers > seen_answers:
                counted += 1
            seen_answers = self.answers
            if self.gives_up(ask, result, attempts, counted):
                return
            if result.wait is not None:
                self.not_before = max(self.not_before, monotonic() + result.wait)
            await self.sleep(max(_backoff(result, attempts) * jitter.uniform(0.5, 1.0), result.wait or 0.0))

    async def may_send(self) -> bool:
        """Whether the next request may go out: waits for a server that asked for a pause."""
        while not self.halted and monotonic() < self.not_before:
            await self.sleep(self.not_before - monotonic())
        limit = self.limits.max_requests
        return not self.halted and (limit is None or self.progress.sent < limit)

    async def sleep(self, seconds: float) -> None:
        """Sleep, or wake when the run stops."""
        try:
            await asyncio.wait_for(self.halt_signal.wait(), max(seconds, 0.001))
        except TimeoutError:
            return

    def accept(self, ask: Ask, reply: Reply, attempts: int) -> None:
        self.answers += 1
        self.trouble_since = None
        self.progress.prompt_tokens += reply.prompt_tokens
        self.progress.completion_tokens += reply.completion_tokens
        self.progress.done += self.write(_judgement(ask, reply, attempts))
        self.on_change(self.progress)

    def gives_up(self, ask: Ask, failure: Failure, attempts: int, counted: int) -> bool:
        """Record a failure that ends this ask, and stop the run where it means that no ask can succeed."""
        limits = self.limits
        self.trouble_since = self.trouble_since or monotonic()
        silence = monotonic() - self.trouble_since
        endless = silence + (failure.wait or 0.0) > limits.patience
        refused = failure.kind is Kind.REFUSED
        hopeless = refused and not self.answers and self.progress.failed + 1 >= REFUSED_AT_START
        if not (refused or failure.kind is Kind.FATAL or endless or counted >= limits.retries):
            return False
        self.progress.failed += 1
        self.write(_error(ask, failure, attempts))
        self.on_change(self.progress)
        if failure.kind is Kind.FATAL or endless or hopeless:
            self.halt(failure, max(silence, 0.001) if endless else 0.0)
        return True

    def halt(self, failure: Failure, silence: float) -> None:
        saved = self.progress.reused + self.progress.done
        what = f"{failure.type}: {failure.message}"
        if silence:
            waiting = f", and asks to wait {failure.wait:.0f} s" if failure.wait else ""
            what = f"no answer for {silence:.0f} s{waiting}; the last failure was {what}"
        fix = "see that the server runs" if silence else advice(failure)
        self.halted = self.halted or EvaluationError(
            what,
            where=f"judge at {self.client.endpoint.url}",
            fix=f"{fix}; {saved} of {self.progress.total} judgements are saved, the same command continues",
        )
        self.halt_signal.set()

    def write(self, record: Record) -> bool:
        """Append to the journal; a full disk stops the run with an error a person can read."""
        try:
            self.journal.append(record)
            return True
        except OSError as error:
            what = f"cannot write: {error.strerror or error}"
            fix = "free space; the same command continues"
            self.halted = EvaluationError(what, where=str(self.journal.path), fix=fix)
            self.halt_signal.set()
            return False


def _backoff(failure: Failure, attempts: int) -> float:
    """Seconds to the next attempt: doubling; where nobody listens, knocking more often costs nothing."""
    longest = LAST_BACKOFF if failure.status else LAST_KNOCK
    return min(longest, FIRST_BACKOFF * 2 ** min(attempts, 10))


def _head(ask: Ask, status: str, attempts: int) -> Record:
    judge = ask.judge
    return {
        "key": ask.key,
        "status": status,
        "pair_id": ask.pair_id,
        "order": ask.order,
        "judge": judge.model,
        "template": judge.template.name,
        "template_hash": judge.template.hash,
        "params": judge.params.as_fields(),
        **ask.notes,
        "attempts": attempts,
    }


def _judgement(ask: Ask, reply: Reply, attempts: int) -> Record:
    verdict = read_reply(ask.judge, reply)
    return _head(ask, "ok", attempts) | {
        "judgment": verdict.letter,
        "verdict": verdict.token,
        "value": verdict.value,
        "grade": verdict.grade,
        "invalid": verdict.invalid,
        "probability": verdict.probability,
        "mass": verdict.mass,
        "reply": reply.text,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
    }


def _error(ask: Ask, failure: Failure, attempts: int) -> Record:
    return _head(ask, "error", attempts) | {"error": failure.as_row()}


def read_reply(judge: Judge, reply: Reply) -> Verdict:
    """The verdict of a reply under the judge's way of asking."""
    if not judge.params.top_logprobs:
        return parse_verdict(reply.text, reply.finish_reason, tie=judge.template.tie)
    if not reply.top:
        return Verdict(None, invalid="the endpoint sent no log-probabilities")
    return probability_verdict(reply.top, tie=judge.template.tie)
