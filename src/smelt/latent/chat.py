"""A conversation in the terminal with a blend, its base and its donors; settings change between answers."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from smelt.core.errors import LatentError, SmeltError, did_you_mean
from smelt.latent.chat_commands import ALIASES, COMMANDS, CONTROL, STOP
from smelt.latent.generating import Answer, Delta, Outcome, Sampling, Task, Voice
from smelt.latent.request_pool import Event, RequestPool
from smelt.latent.serving import Blend, Served

COLOURS = {"base": "blue", "blend": "magenta", "donor": "yellow"}


@dataclass(eq=False)
class Conversation:
    """Who speaks, with what settings, and what was said so far."""

    served: Served
    voice: Voice
    blend: Blend = field(default_factory=Blend)
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7))
    max_tokens: int = 512
    system: str = ""
    plain: bool = False
    turns: list[tuple[str, str]] = field(default_factory=list)  # what was asked, what was answered

    def encode(self, voice: Voice, text: str) -> tuple[int, ...]:
        """The prompt as token ids: plain text alone, or all turns through the chat template."""
        if self.plain:
            return self.served.encode(voice, text)
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for asked, answered in self.turns:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        try:
            return self.served.encode(voice, [*messages, {"role": "user", "content": text}])
        except LatentError as error:
            if "no chat template" in str(error):
                raise LatentError(
                    f"{voice.name} has no chat template", fix="/plain sends text as it is"
                ) from None
            raise

    def task(self, voice: Voice, text: str) -> Task:
        """What to generate for one line."""
        prompt = self.encode(voice, text)
        room = self.max_tokens if voice.context is None else voice.context - len(prompt)
        if room < 1:
            raise LatentError(
                f"the conversation has {len(prompt)} tokens, the context of {voice.name} {voice.context}",
                fix="/reset starts again",
            )
        options = self.served.options(voice, self.blend)
        return Task((prompt,), min(room, self.max_tokens), sampling=self.sampling, options=options)

    def describe(self) -> str:
        """The settings of the blend in one line."""
        settings = self.served.settings_for(self.blend)
        if not settings.sites:
            return "no site: the blend is the base"
        parts = []
        for site in settings.sites:
            ratio = self.blend.beta
            if ratio is None:
                ratio = (
                    site.weights if site.op != "regmean" else f"λ {site.lam:g}"  # type: ignore[assignment]
                )
            shown = " ".join(f"{w:g}" for w in ratio) if isinstance(ratio, tuple) else ratio
            parts.append(f"{site.op} at layer {site.layer}, ratio {shown}")
        return "; ".join(parts) + f"; scope {settings.scope}"


class Chat:
    """Reads lines, answers them, obeys commands."""

    def __init__(self, talk: Conversation, console: Console) -> None:
        self.talk, self.console = talk, console
        self._pool = RequestPool(1)

    def run(self, read: Callable[[str], str]) -> None:
        """Until the input ends or ``/quit``; Ctrl-C at the prompt only clears the line."""
        try:
            while True:
                try:
                    line = read(f"{self.talk.voice.name}> ")
                    while line.endswith("\\"):
                        line = line[:-1] + "\n" + read("... ")
                    if line.strip() and not self.handle(line):
                        return
                except KeyboardInterrupt:
                    self.console.print("\n/quit leaves", style="dim")
                except EOFError:
                    return
        finally:
            self._pool.close()

    def handle(self, line: str) -> bool:
        """One line; False when it was ``/quit``. What went wrong is said, and the conversation goes on."""
        try:
            if not line.lstrip().startswith("/"):
                self.say(line)
                return True
            name, _, rest = line.strip().removeprefix("/").partition(" ")
            command = COMMANDS.get(name) or COMMANDS.get(ALIASES.get(name, ""))
            if command is None:
                advice = did_you_mean(f"/{name}", [f"/{known}" for known in COMMANDS])
                raise LatentError(f"no command /{name}", fix=advice)
            return command.act(self, rest.strip()) is not STOP
        except SmeltError as error:
            for problem in error.problems:
                self.console.print(f"error: {problem}", style="red", markup=False, highlight=False)
            return True

    def say(self, text: str) -> None:
        """Answer, and keep both in the conversation."""
        answer = self.answer(self.talk.voice, text)
        self.talk.turns.append((text, answer.text))

    def compare(self, text: str) -> None:
        """Every model answers; the conversation goes on with what the speaker said."""
        said = {voice.name: self.answer(voice, text, title=True) for voice in ordered(self.talk.served)}
        self.talk.turns.append((text, said[self.talk.voice.name].text))

    def answer(self, voice: Voice, text: str, title: bool = False) -> Answer:
        """Stream one answer to the screen; Ctrl-C ends the answer."""
        task = self.talk.task(voice, text)
        if title:
            about = f" ({self.talk.describe()})" if voice.kind == "blend" else ""
            self.console.print(f"{voice.name}{about}", style=f"bold {COLOURS[voice.kind]}", highlight=False)
        outcome = self._stream(voice, task)
        answer = outcome.answers[0]
        ended = {"stop": "", "length": ", cut at the limit", "cancelled": ", stopped"}[answer.finish]
        self.console.print(
            f"\n{answer.tokens} tokens, {outcome.timing.rate:.1f}/s{ended}", style="dim", highlight=False
        )
        return answer

    def _stream(self, voice: Voice, task: Task) -> Outcome:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        ticket = self._pool.submit(voice, task, events.put)
        while True:
            try:
                event = events.get()
                if isinstance(event, BaseException):
                    raise event
                if isinstance(event, Outcome):
                    return event
                self._show(event, COLOURS[voice.kind])
            except KeyboardInterrupt:
                ticket.cancel()

    def _show(self, delta: Delta, colour: str) -> None:
        """Text of a model is only text: nothing in it steers the terminal."""
        self.console.print(
            delta.text.translate(CONTROL), style=colour, end="", markup=False, highlight=False, soft_wrap=True
        )


def ordered(served: Served) -> list[Voice]:
    """Base, blend, donors."""
    rank = {"base": 0, "blend": 1, "donor": 2}
    return sorted(served.voices.values(), key=lambda voice: rank[voice.kind])


@contextmanager
def line_reader(history: Path | None) -> Iterator[Callable[[str], str]]:
    """``input`` with editing, completion of commands, and lines remembered from earlier sessions."""
    import sys

    if not sys.stdin.isatty():
        yield lambda prompt: _piped_line()
        return
    import readline

    names = [f"/{name}" for name in COMMANDS]
    readline.set_completer_delims(" ")
    readline.set_completer(lambda text, n: [*(name for name in names if name.startswith(text)), None][n])
    readline.parse_and_bind("tab: complete")
    if history is not None and history.is_file():
        readline.read_history_file(history)
    try:
        yield input
    finally:
        if history is not None:
            history.parent.mkdir(parents=True, exist_ok=True)
            readline.set_history_length(1000)
            readline.write_history_file(history)


def _piped_line() -> str:
    import sys

    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")


def history_file() -> Path:
    """Where lines are remembered between sessions."""
    import os

    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "smelt" / "chat_history"
