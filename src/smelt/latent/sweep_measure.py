"""Measures one system: its answers and their scores, where its states lie, and what it costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from smelt.core.errors import LatentError
from smelt.evaluate.intervals import bootstrap_mean
from smelt.latent.baselines import Arena, Contender
from smelt.latent.batch import row_seed
from smelt.latent.costs import metered
from smelt.latent.generating import Answer, Sampling, Task, Voice, run
from smelt.latent.metric_rows import compare
from smelt.latent.prompts import encode
from smelt.latent.states import States, iterate_states
from smelt.latent.sweep_data import Sample, score
from smelt.latent.sweep_grid import Cell


@dataclass(frozen=True, slots=True)
class How:
    """How answers are made and states compared; the batch size decides speed only."""

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    form: str = "auto"  # text prompts: through the chat template (chat), as they are (plain)
    system: str = ""
    answers: bool = True
    metrics: bool = True
    layerwise: bool = False
    metric_prompts: int = 64
    batch: int = 8
    draws: int = 1000  # of the bootstrap over prompts

    def __post_init__(self) -> None:
        if self.form not in ("auto", "chat", "plain"):
            raise LatentError(f"prompt format {self.form!r}", expected="auto, chat or plain")
        for name in ("max_tokens", "metric_prompts", "batch", "draws"):
            if getattr(self, name) < 1:
                raise LatentError(f"{name} is {getattr(self, name)}", expected="at least 1")
        Sampling(self.temperature, self.top_p)

    def to_dict(self) -> dict[str, Any]:
        """The generation config as it stands in every row."""
        return asdict(self)

    def identity(self) -> dict[str, Any]:
        """What of it decides results."""
        return {name: value for name, value in asdict(self).items() if name != "batch"}


class Bench:
    """An arena with prompts: encodes once, remembers the states of base and donor."""

    def __init__(self, arena: Arena, samples: Sequence[Sample], how: How) -> None:
        if not samples:
            raise LatentError("no prompts", where="sweep", expected="at least one")
        self.arena, self.samples, self.how = arena, samples, how
        self.prompts = [self._encode(one) for one in samples]
        self._check_lengths()
        self._states: dict[str, list[States]] = {}
        self._warm = False

    def _encode(self, sample: Sample) -> torch.Tensor:
        tokenizer, how = self.arena.tokenizer, self.how
        chat = bool(getattr(tokenizer, "chat_template", None)) if how.form == "auto" else how.form == "chat"
        if not isinstance(sample.prompt, str):
            return encode(tokenizer, sample.prompt)
        if not chat:
            return encode(tokenizer, how.system + sample.prompt)
        turns = [{"role": "system", "content": how.system}] if how.system else []
        return encode(tokenizer, [*turns, {"role": "user", "content": sample.prompt}])

    def _check_lengths(self) -> None:
        config = self.arena.base.config.get_text_config(decoder=True)
        limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
        more = self.how.max_tokens if self.how.answers else 0
        for sample, ids in zip(self.samples, self.prompts, strict=True):
            if limit and len(ids) + more > limit:
                what = f"id {sample.id!r}: {len(ids)} prompt tokens and {more} to be generated"
                raise LatentError(what, expected=f"at most {limit} in all", fix="lower --max-tokens")

    def measure(self, cell: Cell) -> tuple[dict[str, Any], list[Answer]]:
        """Scores, metrics and costs of a cell, and its answers."""
        with self.arena.open(cell) as contender:
            answers, costs = self.answer(contender) if self.how.answers else ([], None)
            metrics, layers = self._metrics(cell, contender)
        scores = score(self.samples, [one.text for one in answers]) if answers else None
        return {"scores": scores, "metrics": metrics, "layerwise": layers, "costs": costs}, answers

    def answer(self, contender: Contender) -> tuple[list[Answer], dict[str, Any]]:
        """An answer to every prompt, in their order; and what it took."""
        found: dict[int, Answer] = {}
        voice = Voice("sweep", "any", contender.model, self.arena.tokenizer, self.arena.stops)
        order = sorted(range(len(self.prompts)), key=lambda index: len(self.prompts[index]))
        if not self._warm:  # the first generation of a process pays for what later ones find ready
            run(voice, replace(self._task(order[:1], contender.options), max_tokens=1))
            self._warm = True
        with metered(self.arena.base.device) as meter:
            for start in range(0, len(order), self.how.batch):
                chosen = order[start : start + self.how.batch]
                outcome = run(voice, self._task(chosen, contender.options))
                meter.add(outcome.timing, [one.tokens for one in outcome.answers])
                found.update(zip(chosen, outcome.answers, strict=True))
        return [found[index] for index in range(len(order))], meter.summary()

    def _task(self, chosen: Sequence[int], options: Mapping[str, Any]) -> Task:
        seeds = tuple(row_seed(self.how.seed, self.samples[index].id) for index in chosen)
        return Task(
            tuple(tuple(self.prompts[index].tolist()) for index in chosen),
            self.how.max_tokens,
            sampling=Sampling(self.how.temperature, self.how.top_p, seed=seeds),
            options=options,
        )

    def _metrics(self, cell: Cell, contender: Contender) -> tuple[Any, Any]:
        if not self.how.metrics or not contender.hidden:
            return None, None
        final = [self.arena.depth]
        if not self.how.layerwise:
            samples = self._compared(cell, contender, final)
            return spread([one[final[0]] for one in samples], self._ids(), self.how.draws), None
        samples = self._compared(cell, contender, list(range(self.arena.depth + 1)))
        layers = [
            {"site": site, **spread([one[site] for one in samples], self._ids(), self.how.draws)}
            for site in samples[0]
        ]
        return {name: value for name, value in layers[-1].items() if name != "site"}, layers

    def _ids(self) -> list[str]:
        return [one.id for one in self.samples[: self.how.metric_prompts]]

    def _compared(
        self, cell: Cell, contender: Contender, sites: list[int]
    ) -> list[dict[int, dict[str, float]]]:
        """Per prompt and site, the metrics of base, donor and this system."""
        runs = (
            self._reference("base", sites),
            self._reference("donor", sites),
            self._running(contender, sites, cell.scope),
        )
        found = []
        for prompt, (b, d, m) in enumerate(zip(*runs, strict=True)):
            try:
                found.append({site: compare(b[site], d[site], m[site], beta=cell.ratio) for site in sites})
            except LatentError as error:
                raise LatentError(
                    str(error), where=f"metrics of prompt {self.samples[prompt].id!r}"
                ) from error
        return found

    def _reference(self, role: str, sites: list[int]) -> Iterator[States] | list[States]:
        """States of base or donor: kept where there is one a prompt, run again where there are many."""
        model = Contender(getattr(self.arena, role))
        if len(sites) > 1:
            return self._running(model, sites, "all")
        if role not in self._states:
            self._states[role] = list(self._running(model, sites, "all"))
        return self._states[role]

    def _running(self, contender: Contender, sites: list[int], scope: str) -> Iterator[States]:
        rows = self.prompts[: self.how.metric_prompts]
        if contender.model is not self.arena.wrapper:
            yield from iterate_states(contender.model, rows, sites, batch_size=self.how.batch)
            return
        each = self.how.batch if scope == "all" else 1  # prompts end at different columns
        for start in range(0, len(rows), each):
            part = rows[start : start + each]
            more: dict[str, Any] = {} if scope == "all" else {"mix_start": len(part[0]) - 1}
            with self.arena.wrapper.using(contender.options["sites"], scope=scope):
                states = list(iterate_states(contender.model, part, sites, batch_size=each, **more))
            yield from states


def spread(samples: Sequence[Mapping[str, float]], ids: Sequence[str], draws: int) -> dict[str, Any]:
    """Per metric: mean, deviation, bootstrap interval over prompts; prompts where it is undefined left out."""
    found: dict[str, Any] = {}
    for name in samples[0]:
        pairs = [(one[name], key) for one, key in zip(samples, ids, strict=True) if not math.isnan(one[name])]
        values = [value for value, _ in pairs]
        low, high = _interval(values, [key for _, key in pairs], draws)
        found[name] = {
            "mean": statistics.fmean(values) if values else None,
            "std": statistics.stdev(values) if len(values) > 1 else 0.0 if values else None,
            "low": low,
            "high": high,
            "n": len(values),
        }
    return found


def _interval(values: Sequence[float], ids: Sequence[str], draws: int) -> tuple[float | None, float | None]:
    """Of the mean over prompts; None for a single prompt, the value itself where all are equal."""
    if len(values) < 2:
        return None, None
    if min(values) == max(values):
        return values[0], values[0]
    estimate = bootstrap_mean(values, ids, draws=draws)
    return estimate.low, estimate.high
