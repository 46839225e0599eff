"""One generation, watched token by token: sampling, stop strings, logprobs, cancelling, no error lost.

``transformers`` runs the loop and the caches; tokens are chosen and read here, so streamed and unstreamed
text are the same, and rows of a batch depend on nothing but their own prompt and seed.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from smelt.core.errors import LatentError
from smelt.latent.prompts import pad, pad_id_of
from smelt.latent.sampling import check_sampling, row_generators, top_p_sample
from smelt.latent.text_stream import StopCutter, TextStream
from smelt.latent.wrapping import configured

LARGEST_SEED = 2**63 - 2**16


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is drawn. ``seed``: an int (row r uses seed + r), one per row, or None for a fresh one."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_sampling(self.top_p, self.temperature)
        if self.top_k < 0:
            raise LatentError(f"top_k={self.top_k}", expected="0 (off) or a number of tokens")
        if not 0.0 <= self.min_p <= 1.0:
            raise LatentError(f"min_p={self.min_p}", expected="a share of the best probability, 0 to 1")
        if self.repetition_penalty <= 0:
            raise LatentError(
                f"repetition_penalty={self.repetition_penalty}", expected="a number above 0; 1 is off"
            )


@dataclass(frozen=True, slots=True)
class Task:
    """What to generate: token ids of every prompt, ``copies`` answers to each, and when to stop.

    ``options`` go to ``generate`` of the model: for a blend its sites, scope and ratio. ``logprobs`` is the
    number of alternatives to report beside each token (0: the token alone), None for no report.
    """

    prompts: tuple[tuple[int, ...], ...]
    max_tokens: int
    copies: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    stops: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Answers in all."""
        return len(self.prompts) * self.copies


@dataclass(frozen=True, slots=True)
class Choice:
    """One generated token: its log-probability, the most likely alternatives, and where its text begins.

    Log-probabilities are the model's own, before temperature, bias and penalties.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    offset: int


@dataclass(frozen=True, slots=True)
class Delta:
    """News of one row: more text (perhaps none), tokens so far, and why it ended, if it did."""

    row: int
    text: str
    tokens: int
    choices: tuple[Choice, ...] = ()
    finish: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished row. ``tokens`` counts the token that ended it too."""

    text: str
    tokens: int
    finish: str
    seed: int
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds until the first token and in all, and tokens a second after the first."""

    first: float
    total: float
    rate: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """All answers of a task, in the order of its prompts, copies of a prompt together."""

    answers: tuple[Answer, ...]
    prompt_tokens: int
    timing: Timing


@dataclass(frozen=True, slots=True, eq=False)
class Voice:
    """A model that can answer by itself: the blend, the base or a donor."""

    name: str
    kind: str
    model: Any
    tokenizer: Any
    stop_ids: frozenset[int]
    context: int | None = None

    @property
    def vocabulary(self) -> int:
        """Token ids go from 0 to below this."""
        return int(self.model.config.get_text_config(decoder=True).vocab_size)


class Sampler(LogitsProcessor):
    """Draws the token of every row and leaves only it possible; remembers the logprobs asked for."""

    def __init__(self, task: Task, seeds: Sequence[int], prompt_width: int) -> None:
        self._task, self._how, self._width = task, task.sampling, prompt_width
        self._generators = row_generators(seeds, task.rows)
        self._bias: Tensor | None = None
        self._counts: Tensor | None = None
        self._seen: Tensor | None = None
        self.last: list[tuple[float, tuple[tuple[int, float], ...]]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (rows, vocabulary) with the drawn token of each row at 0 and all others at -Inf."""
        plain = scores
        scores = self._penalise(input_ids, self._biased(scores))
        tokens = torch.as_tensor(
            top_p_sample(
                self._trimmed(scores), self._how.top_p, self._how.temperature, generator=self._generators
            )
        )
        if self._task.logprobs is not None:
            self._remember(plain, tokens, self._task.logprobs)
        return torch.full_like(scores, float("-inf")).scatter_(-1, tokens[:, None], 0.0)

    def _biased(self, scores: Tensor) -> Tensor:
        if not self._how.logit_bias:
            return scores
        if self._bias is None:
            self._bias = torch.zeros(scores.shape[-1], device=scores.device)
            for token, value in self._how.logit_bias.items():
                self._bias[token] = value
        return scores + self._bias

    def _penalise(self, ids: Tensor, scores: Tensor) -> Tensor:
        how = self._how
        if how.repetition_penalty == 1.0 and not how.presence_penalty and not how.frequency_penalty:
            return scores
        counts, seen = self._count(ids, scores)
        if how.repetition_penalty != 1.0:
            weak = torch.where(scores > 0, scores / how.repetition_penalty, scores * how.repetition_penalty)
            scores = torch.where(seen, weak, scores)
        return scores - how.frequency_penalty * counts - how.presence_penalty * (counts > 0)

    def _count(self, ids: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """How often each row generated each token, and whether it is in its text at all, prompt included."""
        if self._counts is None or self._seen is None:
            self._counts = torch.zeros_like(scores)
            self._seen = torch.zeros_like(scores, dtype=torch.bool)
            for row in range(len(scores)):
                self._seen[row, list(self._task.prompts[row // self._task.copies])] = True
        if ids.shape[1] > self._width:
            self._counts.scatter_add_(-1, ids[:, -1:], torch.ones_like(scores[:, :1]))
            self._seen.scatter_(-1, ids[:, -1:], True)
        return self._counts, self._seen

    def _trimmed(self, scores: Tensor) -> Tensor:
        how = self._how
        if 0 < how.top_k < scores.shape[-1]:
            least = scores.topk(how.top_k, dim=-1).values[:, -1:]
            scores = scores.masked_fill(scores < least, float("-inf"))
        if how.min_p > 0 and how.temperature > 0:
            warm = scores / how.temperature
            best = warm.amax(-1, keepdim=True)
            scores = scores.masked_fill(warm < best + torch.log(torch.tensor(how.min_p)), float("-inf"))
        return scores

    def _remember(self, scores: Tensor, tokens: Tensor, count: int) -> None:
        logs = torch.log_softmax(scores.float(), dim=-1)
        own = logs.gather(-1, tokens[:, None])[:, 0].tolist()
        values, ids = logs.topk(min(count, logs.shape[-1]), dim=-1) if count else (logs[:, :0], logs[:, :0])
        pairs = zip(ids.long().tolist(), values.tolist(), strict=True)
        self.last = [
            (mine, tuple(zip(row, value, strict=True))) for mine, (row, value) in zip(own, pairs, strict=True)
        ]


class Row:
    """One answer while it grows."""

    def __init__(self, index: int, task: Task, voice: Voice, ends: frozenset[int]) -> None:
        self._index, self._task, self._ends = index, task, ends
        self._stream = TextStream(voice.tokenizer)
        self._cutter = StopCutter(task.stops)
        self._waiting: list[Choice] = []
        self._read = 0  # characters decoded, shown or held back
        self.shown = ""
        self.tokens = 0
        self.finish: str | None = None
        self.choices: list[Choice] = []

    def push(self, token: int, report: tuple[float, tuple[tuple[int, float], ...]] | None) -> Delta:
        """Take one token in."""
        self.tokens += 1
        if token in self._ends:
            return self.close("stop")
        if report is not None:
            self._waiting.append(Choice(token, *report, self._read))
        piece = self._stream.push(token)
        self._read += len(piece)
        shown = self._cutter.push(piece)
        if self._cutter.hit:
            return self._say(shown, "stop")
        if self.tokens >= self._task.max_tokens:
            return self.close("length", shown)
        return self._say(shown)

    def close(self, finish: str, shown: str = "") -> Delta:
        """End here: what was held back comes out, unless it completes a stop string."""
        shown += self._cutter.push(self._stream.flush())
        if self._cutter.hit:
            return self._say(shown, "stop")
        return self._say(shown + self._cutter.flush(), finish)

    def _say(self, text: str, finish: str | None = None) -> Delta:
        self.shown += text
        self.finish = finish
        ready = [
            one for one in self._waiting if one.offset < len(self.shown) or (finish and not self._cutter.hit)
        ]
        self._waiting = self._waiting[len(ready) :]
        self.choices += ready
        return Delta(self._index, text, self.tokens, tuple(ready), finish)


class Watcher(StoppingCriteria):
    """Called after every token: feeds the rows, tells the listener, and says who is done."""

    def __init__(
        self, rows: Sequence[Row], sampler: Sampler, cancel: threading.Event, emit: Callable[[Delta], None]
    ) -> None:
        self._rows, self._sampler, self._cancel, self._emit = rows, sampler, cancel, emit
        self.first = 0.0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """Which rows are done."""
        self.first = self.first or time.monotonic()
        reports = self._sampler.last
        for index, token in enumerate(input_ids[:, -1].tolist()):
            row = self._rows[index]
            if row.finish is None:
                self._emit(row.push(token, reports[index] if reports else None))
        if self._cancel.is_set():
            self.cancel()
        done = [row.finish is not None for row in self._rows]
        return torch.tensor(done, device=input_ids.device)

    def cancel(self) -> None:
        """End every open row where it is."""
        for row in self._rows:
            if row.finish is None:
                self._emit(row.close("cancelled"))


def run(
    voice: Voice,
    task: Task,
    emit: Callable[[Delta], None] | None = None,
    cancel: threading.Event | None = None,
) -> Outcome:
    """Generate; ``emit`` hears of every token as it comes, ``cancel`` ends it within one token.

    Errors of the model or of ``emit`` come out of this call.
    """
    begun = time.monotonic()
    cancel = cancel or threading.Event()
    seeds = row_seeds(task)
    prompts = [torch.tensor(prompt, dtype=torch.long) for prompt in task.prompts for _ in range(task.copies)]
    filler = pad_id_of(voice.tokenizer, voice.model.config)
    ids, mask = pad(prompts, filler)
    sampler = Sampler(task, seeds, ids.shape[1])
    ends = end_tokens(voice, task)
    rows = [Row(index, task, voice, ends) for index in range(task.rows)]
    watcher = Watcher(rows, sampler, cancel, emit or _ignore)
    if cancel.is_set():
        watcher.cancel()
    else:
        _generate(voice, task, ids, mask, filler, sampler, watcher)
    answers = [
        Answer(row.shown, row.tokens, row.finish or "length", seed, tuple(row.choices))
        for row, seed in zip(rows, seeds, strict=True)
    ]
    asked = sum(len(prompt) for prompt in task.prompts)
    return Outcome(tuple(answers), asked, _timing(begun, watcher.first, [row.tokens for row in rows]))


def stream(voice: Voice, task: Task) -> Iterator[Delta]:
    """The news of :func:`run` as they come. Errors are raised here; leaving the loop early stops the model."""
    events: queue.SimpleQueue[Delta | Outcome | BaseException] = queue.SimpleQueue()
    cancel = threading.Event()

    def work() -> None:
        try:
            events.put(run(voice, task, events.put, cancel))
        except BaseException as error:
            events.put(error)

    thread = threading.Thread(target=work, name="smelt-stream", daemon=True)
    thread.start()
    try:
        while isinstance(event := events.get(), Delta):
            yield event
        if isinstance(event, BaseException):
            raise event
    finally:
        cancel.set()
        thread.join()


def _generate(
    voice: Voice, task: Task, ids: Tensor, mask: Tensor, filler: int, sampler: Sampler, watcher: Watcher
) -> None:
    """Nothing of the checkpoint's own generation config applies: every voice decodes alike."""
    plan = GenerationConfig(max_new_tokens=task.max_tokens, do_sample=False, pad_token_id=filler)
    device = voice.model.get_input_embeddings().weight.device
    configured(voice.model, plan).generate(
        ids.to(device),
        attention_mask=mask.to(device),
        logits_processor=[sampler],
        stopping_criteria=[watcher],
        **task.options,
    )


def end_tokens(voice: Voice, task: Task) -> frozenset[int]:
    """Tokens that end an answer. A stop string that is a special token never shows as text: it is looked for here."""
    special = set(voice.tokenizer.all_special_tokens) if task.stops else set()
    asked = {voice.tokenizer.convert_tokens_to_ids(stop) for stop in task.stops if stop in special}
    return frozenset(asked) if task.ignore_eos else voice.stop_ids | asked


def row_seeds(task: Task) -> list[int]:
    """The seed of every row; fresh ones when none was asked for."""
    seed = task.sampling.seed
    if isinstance(seed, tuple):
        return list(seed)
    start = secrets.randbelow(2**31) if seed is None else seed
    return [(start + row) % LARGEST_SEED for row in range(task.rows)]


def _timing(begun: float, first: float, tokens: Sequence[int]) -> Timing:
    ended = time.monotonic()
    later = sum(count - 1 for count in tokens if count)
    after = ended - first if first else 0.0
    return Timing((first or ended) - begun, ended - begun, later / after if after > 0 else 0.0)


def _ignore(delta: Delta) -> None:
    return None
