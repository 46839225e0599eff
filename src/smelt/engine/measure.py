"""Pass 1: run a method's measure function, one streamed round per yield, over one tensor or a group of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from typing import Any

import numpy as np

from smelt.engine.crew import Crew
from smelt.engine.run import TensorRun
from smelt.numerics.blocks import Block
from smelt.numerics.expr import Program
from smelt.numerics.reference import NumpyBackend
from smelt.numerics.select import Selector
from smelt.numerics.stats import KEEP_ALL, KEEP_NONE, Cut, Sum, Top

#: elements looked at to guess where an order statistic lies, and how many at one place
SAMPLE, PLACE = 1 << 16, 2048


def measure_all(runs: Sequence[TensorRun], crew: Crew) -> None:
    """Give every run its statistics. Runs measured together share order statistics of a wider scope."""
    active: list[tuple[TensorRun, Generator[Any, Any, Any], list[Any]]] = []
    for run in runs:
        generator = run.start_measuring()
        if generator is not None:
            _advance(run, generator, None, active)
    while active:
        answers = _answer([(run, requests) for run, _, requests in active], crew)
        waiting, active = active, []
        for (run, generator, _), answer in zip(waiting, answers, strict=True):
            _advance(run, generator, answer, active)


def _advance(run: TensorRun, generator: Generator[Any, Any, Any], answer: Any, active: list[Any]) -> None:
    try:
        with np.errstate(all="ignore"):  # NaN and Inf in inputs are named by the pass that writes
            requests = generator.send(answer)
    except StopIteration as stop:
        run.stats = stop.value
    else:
        active.append((run, generator, requests))


def _answer(asked: list[tuple[TensorRun, list[Any]]], crew: Crew) -> list[list[Any]]:
    answers: list[list[Any]] = [[None] * len(requests) for _, requests in asked]
    groups: dict[Any, list[tuple[int, int]]] = defaultdict(list)
    for at, (run, requests) in enumerate(asked):
        sums = [(place, item) for place, item in enumerate(requests) if isinstance(item, Sum)]
        for place, value in _sums(run, sums, crew).items():
            answers[at][place] = value
        for place, item in enumerate(requests):
            if isinstance(item, Top):
                groups[_group(run, at, item)].append((at, place))
    for members in _batches(asked, groups):
        for (at, place), cut in _tops(asked, members, crew).items():
            answers[at][place] = cut
    return answers


def _group(run: TensorRun, at: int, top: Top) -> Any:
    return {"tensor": ("tensor", at), "layer": ("layer", run.layer), "model": ("model",)}[top.scope]


def _batches(
    asked: list[tuple[TensorRun, list[Any]]], groups: dict[Any, list[tuple[int, int]]]
) -> list[list[list[tuple[int, int]]]]:
    """Order statistics to be found together: for each group, one list of (run, place) per stream."""
    batches = []
    for members in groups.values():
        by_stream: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for at, place in members:
            stream = asked[at][1][place].stream
            by_stream[place if stream is None else stream].append((at, place))
        batches.append(list(by_stream.values()))
    return batches


def _sums(run: TensorRun, requests: list[tuple[int, Sum]], crew: Crew) -> dict[int, Any]:
    results: dict[int, Any] = {}
    for axis in (None, "row", "column"):
        chosen = [(place, item.value) for place, item in requests if item.axis == axis]
        if not chosen:
            continue
        program = Program.of([value for _, value in chosen])
        values = (
            run.column_sums(program, crew) if axis == "column" else run.sums(program, axis == "row", crew)
        )
        for column, (place, _) in enumerate(chosen):
            results[place] = float(values[column]) if axis is None else values[column]
    return results


@dataclass
class _Search:
    """One order statistic over the tensors of a group."""

    runs: list[TensorRun]
    programs: list[Program]
    keys: list[tuple[int, int]]
    selector: Selector

    @property
    def wants_sample(self) -> bool:
        """Whether the tensors are too large to be looked at without a guess."""
        return not self.selector.trivial and self.selector.next.kind == "bracket"

    @cached_property
    def position(self) -> dict[int, int]:
        """Where each run that takes part stands in this search."""
        return {at: position for position, (at, _) in enumerate(self.keys)}


def _tops(
    asked: list[tuple[TensorRun, list[Any]]], batch: list[list[tuple[int, int]]], crew: Crew
) -> dict[tuple[int, int], Cut]:
    searches = [_start_search(asked, keys) for keys in batch]
    _guess([search for search in searches if search.wants_sample], crew)
    while open_searches := [search for search in searches if not search.selector.done]:
        _one_pass(open_searches, crew)
    cuts: dict[tuple[int, int], Cut] = {}
    for search in searches:
        cuts.update(_cuts(search, crew))
    return cuts


def _start_search(asked: list[tuple[TensorRun, list[Any]]], keys: list[tuple[int, int]]) -> _Search:
    runs = [asked[at][0] for at, _ in keys]
    requests: list[Top] = [asked[at][1][place] for at, place in keys]
    programs = [Program.of([request.value]) for request in requests]
    count = sum(run.info.numel for run in runs)
    elements: dict[float, int] = defaultdict(int)
    for run, request in zip(runs, requests, strict=True):
        elements[request.density] += run.info.numel
    keep = int(sum(density * number for density, number in elements.items()))
    return _Search(runs, programs, keys, Selector(count, keep, 8 * runs[0].acc.itemsize))


def _guess(searches: list[_Search], crew: Crew) -> None:
    """Give searches patterns from evenly spread places; only where to look first depends on them."""
    found: list[list[np.ndarray]] = [[] for _ in searches]
    counts = [search.selector.count for search in searches]
    for run, present in _by_run(searches):
        every = max(max(counts[number] for number, _ in present) // SAMPLE, 1) * PLACE
        top = (1 << (8 * run.acc.itemsize)) - 1
        for start in range(0, run.info.numel, every):
            size = min(PLACE, run.info.numel - start)
            programs = [searches[number].programs[position] for number, position in present]
            block = run.block(programs, start, size, crew.scratch())
            for (number, _), program in zip(present, programs, strict=True):
                found[number].append(run.backend.collect(program, block, run.acc, 0, top)[1])
    for search, patterns in zip(searches, found, strict=True):
        old = search.selector
        search.selector = Selector(old.count, old.keep, old.bits, np.concatenate(patterns))


def _by_run(searches: list[_Search]) -> list[tuple[TensorRun, list[tuple[int, int]]]]:
    """Every tensor that takes part, with (search, its place in that search) for each search it is in."""
    runs = {at: run for search in searches for (at, _), run in zip(search.keys, search.runs, strict=True)}
    return [
        (runs[at], [(n, search.position[at]) for n, search in enumerate(searches) if at in search.position])
        for at in sorted(runs)
    ]


def _one_pass(searches: list[_Search], crew: Crew) -> None:
    """One pass over the data for all searches at once; tensor by tensor, each for those it takes part in."""
    per_search: list[list[Any]] = [[] for _ in searches]
    for run, present in _by_run(searches):
        programs = [searches[number].programs[position] for number, position in present]

        def look(
            start: int,
            size: int,
            scratch: Any,
            run: Any = run,
            present: Any = present,
            programs: Any = programs,
        ) -> list[Any]:
            block = run.block(programs, start, size, scratch)
            return [_look(searches[number], position, block) for number, position in present]

        for results in crew.each_block(run.info.numel, look):
            for (number, _), result in zip(present, results, strict=True):
                per_search[number].append(result)
    for search, results in zip(searches, per_search, strict=True):
        taken = (
            search.selector.take_bracket
            if search.selector.next.kind == "bracket"
            else search.selector.take_collected
        )
        taken(results)


def _look(search: _Search, position: int, block: Block) -> Any:
    run, program, wanted = search.runs[position], search.programs[position], search.selector.next
    if wanted.kind == "bracket":
        bins = ((wanted.high - wanted.low) >> wanted.shift) + 1
        found = run.backend.bracket(program, block, run.acc, wanted.low, wanted.high, wanted.shift, bins)
        return search.selector.fold(found)
    return run.backend.collect(program, block, run.acc, wanted.low, wanted.high)


def _cuts(search: _Search, crew: Crew) -> dict[tuple[int, int], Cut]:
    selector = search.selector
    if selector.trivial:
        return dict.fromkeys(search.keys, KEEP_NONE if selector.keep <= 0 else KEEP_ALL)
    value, split = selector.value(), selector.split()
    if split is None:
        return dict.fromkeys(search.keys, Cut(value))
    cuts: dict[tuple[int, int], Cut] = {}
    block, kept = split
    for run, program, key in zip(search.runs, search.programs, search.keys, strict=True):
        spans = crew.spans(run.info.numel)
        if block < 0:
            cuts[key] = Cut(value, -1.0)
        elif block >= len(spans):
            cuts[key] = Cut(value, inf)
        else:
            cuts[key] = Cut(value, float(_last_tie(run, program, spans[block], kept, selector.pattern, crew)))
        block -= len(spans)
    return cuts


def _last_tie(
    run: TensorRun, program: Program, span: tuple[int, int], kept: int, pattern: int, crew: Crew
) -> int:
    """Index of the ``kept``-th element of a block that has the pattern; -1 when none is kept."""
    if kept == 0:
        return span[0] - 1
    start, size = span
    patterns = NumpyBackend().patterns(program, run.block(program, start, size, crew.scratch()), run.acc)
    return start + int(np.flatnonzero(patterns == np.uint64(pattern))[kept - 1])
