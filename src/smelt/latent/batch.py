"""Answers to a file of prompts: batched, resumable, independent of how rows fall into batches."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from smelt.core.errors import LatentError, Problem
from smelt.evaluate._text import digest, json_rows
from smelt.evaluate.responses import ALIASES, Response, prompt_text, write_responses
from smelt.latent.generating import Sampling, Task, Voice, run
from smelt.latent.serving import Blend, Served

SHOWN = 5  # problems of one kind that are listed
FORMATS = ("auto", "chat", "plain")
START = b'{"id": '  # how every line of answers begins


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One line of the prompt file."""

    id: str
    prompt: Any  # a text, or chat messages
    text: str  # what a judge will see
    source: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """How to answer."""

    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.0))
    max_tokens: int = 512
    stops: tuple[str, ...] = ()
    batch: int = 8
    seed: int = 0
    form: str = "auto"  # prompts that are plain text: through the chat template (chat), as they are (plain)
    system: str = ""
    skip_long: bool = False

    def fingerprint(self, made_by: str, form: str) -> str:
        """What the answers depend on, beside the prompts; not the batch size."""
        how = self.sampling
        facts = [made_by, how.temperature, how.top_p, how.top_k, how.min_p, how.presence_penalty]
        facts += [how.frequency_penalty, how.repetition_penalty, sorted(how.logit_bias.items())]
        facts += [self.max_tokens, list(self.stops), self.seed, form, self.system]
        return "smelt-" + digest(facts)[:16]


@dataclass(slots=True)
class Progress:
    """How far a run is."""

    total: int
    reused: int = 0
    done: int = 0
    tokens: int = 0
    seconds: float = 0.0
    finishes: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Tokens a second, over all rows."""
        return self.tokens / self.seconds if self.seconds else 0.0


def read_prompts(path: str | Path) -> list[PromptRow]:
    """Prompts from JSONL or a JSON list: ``prompt`` or ``messages``, maybe ``id`` and ``source``."""
    path = Path(path)
    rows: list[PromptRow] = []
    first: dict[str, int] = {}
    problems: list[Problem] = []
    for number, row in json_rows(path):
        where = f"{path}:{number}"
        prompt = row.get("messages", next((row[key] for key in ALIASES["prompt"] if key in row), None))
        text = prompt_text(prompt, where)
        if not text:
            problems.append(Problem("no prompt", where, "'prompt' (text) or 'messages' (chat messages)"))
            continue
        named = next((row[key] for key in ALIASES["id"] if row.get(key) is not None), None)
        name = digest(text)[:16] if named is None else str(named)
        if name in first:
            what = f"id {name!r} is also in line {first[name]}"
            problems.append(Problem(what, where, "every id once", "give different ids"))
            continue
        first[name] = number
        rows.append(PromptRow(name, prompt, text, str(row.get("source") or "")))
    if not rows and not problems:
        problems.append(Problem("no prompts", str(path), "one JSON object a line"))
    _refuse(problems)
    return rows


def _refuse(problems: Sequence[Problem]) -> None:
    if problems:
        more = (
            [Problem(f"{len(problems) - SHOWN} more problems of this kind")] if len(problems) > SHOWN else []
        )
        raise LatentError([*problems[:SHOWN], *more])


def form_of(job: Job, voice: Voice) -> str:
    """Whether text goes through the chat template; auto: if there is one."""
    if job.form not in FORMATS:
        raise LatentError(f"unknown prompt format {job.form!r}", expected=", ".join(FORMATS))
    has = bool(getattr(voice.tokenizer, "chat_template", None))
    if job.form == "chat" and not has:
        raise LatentError(f"{voice.name} has no chat template", fix="use --format plain")
    return ("chat" if has else "plain") if job.form == "auto" else job.form


def row_seed(seed: int, name: str) -> int:
    """The seed of one row: from the run's seed and the row's id, so order and batches do not matter.

    >>> row_seed(0, "q1") == row_seed(0, "q1") != row_seed(1, "q1")
    True
    """
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "big")


def answer_file(
    served: Served,
    voice: Voice,
    prompts: Sequence[PromptRow],
    out: str | Path,
    job: Job,
    blend: Blend | None = None,
    on_change: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Answer all prompts that ``out`` does not answer yet; in the end ``out`` is in the order of the prompts.

    A line is in the file as soon as its batch is done, so a killed run loses one batch at most.
    """
    blend = blend or Blend()
    form = form_of(job, voice)
    made_by = job.fingerprint(served.fingerprint(voice, blend), form)
    options = served.options(voice, blend)
    encoded = _encode_all(served, voice, prompts, job, form)
    out = Path(out)
    with _opened(out) as file:
        done = _existing(out, file, prompts, made_by)
        progress = Progress(len(prompts), reused=len(done))
        on_change(progress)
        for rows in _batches(prompts, encoded, done, job.batch):
            begun = time.monotonic()
            for response in _answer(voice, rows, encoded, job, options, made_by):
                done[response.id] = response
                progress.done += 1
                progress.tokens += response.tokens or 0
                progress.finishes[response.finish_reason or ""] += 1
                _append(file, response)
            os.fsync(file)
            progress.seconds += time.monotonic() - begun
            on_change(progress)
        write_responses(out, [done[row.id] for row in prompts])
    return progress


def _encode_all(
    served: Served, voice: Voice, prompts: Sequence[PromptRow], job: Job, form: str
) -> dict[str, tuple[int, ...] | None]:
    """Token ids of every prompt; None for those that are too long, if that is allowed."""
    found: dict[str, tuple[int, ...] | None] = {}
    problems = []
    for row in prompts:
        ids = served.encode(voice, _written(row, job, form))
        limit = voice.context
        fits = limit is None or len(ids) + job.max_tokens <= limit
        found[row.id] = ids if fits else None
        if not fits and not job.skip_long:
            what = f"id {row.id!r}: the prompt has {len(ids)} tokens and {job.max_tokens} more are asked for"
            fix = "lower --max-tokens, or use --skip-long"
            problems.append(Problem(what, expected=f"at most {limit} in all", fix=fix))
    _refuse(problems)
    return found


def _written(row: PromptRow, job: Job, form: str) -> Any:
    if not isinstance(row.prompt, str):
        own = row.prompt[0].get("role") == "system"
        return row.prompt if own or not job.system else [_turn("system", job.system), *row.prompt]
    if form == "plain":
        return job.system + row.prompt
    return [*([_turn("system", job.system)] if job.system else []), _turn("user", row.prompt)]


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _batches(
    prompts: Sequence[PromptRow],
    encoded: Mapping[str, tuple[int, ...] | None],
    done: Mapping[str, Response],
    size: int,
) -> Iterator[list[PromptRow]]:
    """Rows still to be answered, those of like length together: padding is work for nothing."""
    left = [row for row in prompts if row.id not in done]
    left.sort(key=lambda row: len(encoded[row.id] or ()))
    for start in range(0, len(left), size):
        yield left[start : start + size]


def _answer(
    voice: Voice,
    rows: Sequence[PromptRow],
    encoded: Mapping[str, tuple[int, ...] | None],
    job: Job,
    options: Mapping[str, Any],
    made_by: str,
) -> Iterator[Response]:
    for row in rows:
        if encoded[row.id] is None:
            yield Response(row.id, row.text, None, digest(row.text), voice.name, made_by, "too_long", 0,
                           source=row.source)  # fmt: skip
    ready = [(row, ids) for row in rows if (ids := encoded[row.id]) is not None]
    if not ready:
        return
    seeds = tuple(row_seed(job.seed, row.id) for row, _ in ready)
    task = Task(
        tuple(ids for _, ids in ready),
        job.max_tokens,
        sampling=replace(job.sampling, seed=seeds),
        stops=job.stops,
        options=options,
    )
    for (row, _), answer in zip(ready, run(voice, task).answers, strict=True):
        yield Response(row.id, row.text, answer.text, digest(row.text), voice.name, made_by, answer.finish,
                       answer.tokens, answer.seed, row.source)  # fmt: skip


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """The answer file, open for appending, locked against a second run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        raise LatentError(
            f"cannot be opened: {error.strerror}", where=str(path), fix="choose another --out"
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield file
    except BlockingIOError:
        raise LatentError("another run is writing this file", where=str(path), fix="wait for it") from None
    finally:
        os.close(file)


def _existing(path: Path, file: int, prompts: Sequence[PromptRow], made_by: str) -> dict[str, Response]:
    """Answers that are there already; a torn last line is cut off, answers of another kind are refused."""
    data = path.read_bytes()
    kept = data.rfind(b"\n") + 1
    lines = data[:kept].split(b"\n")[:-1]
    wanted = {row.id: row for row in prompts}
    found: dict[str, Response] = {}
    for number, line in enumerate(lines, 1):
        response = _parsed(line, f"{path}:{number}")
        row = wanted.get(response.id)
        if row is None or response.prompt_hash != digest(row.text):
            raise LatentError(
                f"id {response.id!r} answers another prompt",
                where=f"{path}:{number}",
                fix="choose another --out, or pass --overwrite",
            )
        if response.recipe_hash != made_by:
            raise LatentError(
                f"made with other models or settings ({response.recipe_hash}, {response.model})",
                where=f"{path}:{number}",
                expected=made_by,
                fix="choose another --out, or pass --overwrite",
            )
        found[response.id] = response
    torn = data[kept:]
    if torn and torn[: len(START)] != START[: len(torn)]:
        raise _foreign(f"{path}:{len(lines) + 1}")
    os.ftruncate(file, kept)
    return found


def _parsed(line: bytes, where: str) -> Response:
    try:
        row = json.loads(line)
        return Response(**{name: row[name] for name in Response.__dataclass_fields__})
    except (ValueError, KeyError, TypeError):
        raise _foreign(where) from None


def _foreign(where: str) -> LatentError:
    return LatentError("not an answer that smelt wrote", where=where, fix="choose another --out")


def _append(file: int, response: Response) -> None:
    line = (json.dumps(response.as_row(), ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
    view = memoryview(line)
    while view:
        view = view[os.write(file, view) :]
