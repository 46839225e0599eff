"""Tables out of measurements: one on the terminal, one page in docs/, the raw figures beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench import machine, startup

MAIN_SIZE = "1.24b"  # the size the bounds are set for
MEMORY_LIMIT = 700e6
MEMORY_GROWTH = 1.10
QUIET = 0.05  # of all processors may be busy with other things
DATA = "benchmarks.json"
PAGE = "benchmarks.md"
Result = Mapping[str, Any]


def start_seconds(result: Result) -> float:
    """What is subtracted from a wall time: the interpreter's start."""
    return float(next(row["seconds"] for row in result["startup"] if row["what"] == startup.START))


def summary(row: Mapping[str, Any], start: float) -> dict[str, Any]:
    """One method's rounds as medians (times) and maxima (memory)."""
    rounds = row["rounds"]
    floors = rounds["floor"]
    found: dict[str, Any] = {
        "method": row["method"],
        "floor": median(f["read"] + f["write"] for f in floors),
        "durable": median(f["read"] + f["write"] + f["sync"] for f in floors),
        "warm": row["warm"],
    }
    for tool, runs in rounds.items():
        if tool == "floor":
            continue
        if any(run["code"] for run in runs):
            found[tool] = {"failed": runs[0]["tail"].strip().splitlines()[-1:] or ["no message"]}
            continue
        found[tool] = {
            "wall": median(run["wall"] for run in runs),
            "cpu": median(run["cpu"] for run in runs),
            "anon": max(run["anon"] for run in runs),
            "rss": max(run["rss"] for run in runs),
        }
    found["over_floor"] = max(0.0, found["smelt"]["wall"] - start) / found["floor"]
    peer = found.get("mergekit", {})
    found["speedup"] = peer["wall"] / found["smelt"]["wall"] if "wall" in peer else None
    return found


def verdicts(
    result: Result, everything: Mapping[str, Result] | None = None
) -> list[tuple[str, str, str, bool]]:
    """(what, measured, bound, met) of every bound that applies to this result."""
    found = [
        (
            f"start: {row['what']}",
            f"{row['seconds']:.2f} s",
            f"{row['limit']} s",
            row["seconds"] <= row["limit"],
        )
        for row in result["startup"]
        if row["limit"]
    ]
    start = start_seconds(result)
    for row in result["rows"]:
        line = summary(row, start)
        name = row["method"]
        if result["size"] == MAIN_SIZE and result["device"] == "cpu":
            if line["speedup"] is not None:
                good = line["speedup"] >= row["bound_speedup"]
                found.append(
                    (
                        f"{name}: faster than mergekit",
                        f"{line['speedup']:.1f}x",
                        f"{row['bound_speedup']}x",
                        good,
                    )
                )
            ratio, bound = line["over_floor"], row["bound_floor"]
            found.append((f"{name}: over the I/O floor", f"{ratio:.2f}x", f"{bound}x", ratio <= bound))
        limit = _memory_limit(result, name, everything or {})
        if limit:
            anon = line["smelt"]["anon"]
            found.append((f"{name}: anonymous memory", _mb(anon) + " MB", _mb(limit) + " MB", anon <= limit))
    return found


def _memory_limit(result: Result, method: str, everything: Mapping[str, Result]) -> float | None:
    """700 MB at the main size; at the larger one, 10 % above what the main size took on the same machine."""
    if result["device"] != "cpu":
        return None
    if result["size"] == MAIN_SIZE:
        return MEMORY_LIMIT
    main = everything.get(MAIN_SIZE)
    if result["size"] != "3.2b" or main is None:
        return None
    for row in main["rows"]:
        if row["method"] == method:
            return MEMORY_GROWTH * summary(row, 0.0)["smelt"]["anon"]
    return None


def missed(result: Result) -> list[str]:
    """The bounds that were not met."""
    return [
        f"{what} {measured} (bound {bound})" for what, measured, bound, good in verdicts(result) if not good
    ]


def _mb(amount: float) -> str:
    return f"{amount / 1e6:.0f}"


def _cell(found: Mapping[str, Any], tool: str, field: str, form: str = "{:.2f}") -> str:
    values = found.get(tool)
    if values is None:
        return ""
    if "failed" in values:
        return "failed"
    return _mb(values[field]) if field in ("anon", "rss") else form.format(values[field])


HEADS = (
    "method", "smelt s", "mergekit s", "faster", "sd-mecha s", "smelt CPU s", "mergekit CPU s", "smelt MB",
    "mergekit MB", "sd-mecha MB", "floor s", "with fsync s", "net / floor", "net / fsynced floor",
)  # fmt: skip


def main_table(result: Result) -> tuple[tuple[str, ...], list[list[str]]]:
    """Heads and rows of the comparison."""
    start = start_seconds(result)
    rows = []
    for raw in result["rows"]:
        found = summary(raw, start)
        net = max(0.0, found["smelt"]["wall"] - start)
        rows.append(
            [
                raw["method"],
                _cell(found, "smelt", "wall"),
                _cell(found, "mergekit", "wall", "{:.1f}"),
                "" if found["speedup"] is None else f"{found['speedup']:.1f}x",
                _cell(found, "sd-mecha", "wall", "{:.1f}"),
                _cell(found, "smelt", "cpu"),
                _cell(found, "mergekit", "cpu", "{:.1f}"),
                _cell(found, "smelt", "anon"),
                _cell(found, "mergekit", "anon"),
                _cell(found, "sd-mecha", "anon"),
                f"{found['floor']:.2f}",
                f"{found['durable']:.2f}",
                f"{found['over_floor']:.2f}",
                f"{net / found['durable']:.2f}",
            ]
        )
    return HEADS, rows


def agreement_lines(result: Result) -> list[str]:
    """Proof that the programs did the same merge, one line a method and peer."""
    lines = []
    for row in result["rows"]:
        for peer, counts in row["agreement"].items():
            if counts:
                same, near = counts["equal"] / counts["elements"], counts["one_step"] / counts["elements"]
                lines.append(
                    f"- {row['method']}, smelt and {peer}: {same:.2%} equal, {near:.3%} within one bf16 step"
                )
    return lines


def disturbances(result: Result) -> list[str]:
    """Runs during which something else worked on the machine, which makes their times worth less."""
    found = []
    for row in result["rows"]:
        for tool, runs in row["rounds"].items():
            shares = [
                run["others"] / (run["wall"] * result["facts"]["cores"]) for run in runs if "others" in run
            ]
            if shares and median(shares) > QUIET:
                found.append(f"{row['method']} with {tool} ({median(shares):.0%} of the processors)")
    return found


def scaling_rows(result: Result) -> list[list[str]]:
    return [[row["method"], str(row["threads"]), f"{median(row['walls']):.2f}"] for row in result["scaling"]]


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A pipe table.

    >>> print(markdown(["a", "b"], [["1", "2"]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _verdict_rows(result: Result, everything: Mapping[str, Result]) -> list[list[str]]:
    return [
        [what, measured, bound, "yes" if good else "**no**"]
        for what, measured, bound, good in verdicts(result, everything)
    ]


def measured_when(result: Result) -> str:
    """From when to when each program was measured: a run may be continued, and one program measured again."""
    spans: dict[str, list[str]] = {}
    for row in result["rows"]:
        for tool, records in row["rounds"].items():
            stamps = [record["when"][:16].replace("T", " ") for record in records if "when" in record]
            spans.setdefault(tool, []).extend(stamps)
    told = "; ".join(f"{tool} {min(when)} to {max(when)}" for tool, when in spans.items() if when)
    return f" Measured (UTC): {told}." if told else ""


def section(result: Result, everything: Mapping[str, Result]) -> str:
    """One size's part of the page."""
    millions = result["parameters"] / 1e9
    device = "" if result["device"] == "cpu" else f" on {result['device']}"
    peers = "; ".join(result["peers"].values())
    cold = [row["method"] for row in result["rows"] if not row["warm"]]
    parts = [
        f"## {result['size']}: {millions:.2f} billion parameters, bf16{device}",
        machine.sentence(result["facts"]) + (f" Peers: {peers}." if peers else ""),
        f"{result['threads']} threads, {result['repeat']} rounds, run id `{result['run_id']}`."
        + measured_when(result),
        markdown(*main_table(result)),
    ]
    if cold:
        parts.append(f"Inputs larger than the page cache, read from disk: {', '.join(cold)}.")
    if noisy := disturbances(result):
        parts.append("**The machine was not quiet:** something else worked during " + ", ".join(noisy) + ".")
    if lines := agreement_lines(result):
        parts += ["Outputs compared element by element:", "\n".join(lines)]
    if checked := _verdict_rows(result, everything):
        parts.append(markdown(["bound", "measured", "limit", "met"], checked))
    if result["scaling"]:
        parts += ["Threads:", markdown(["method", "threads", "smelt s"], scaling_rows(result))]
    starts = [[row["what"], f"{row['seconds']:.2f}", str(row["limit"] or "")] for row in result["startup"]]
    parts.append(markdown(["start-up", "seconds", "limit"], starts))
    return "\n\n".join(parts)


INTRO = """# Benchmarks

Made by `make bench` (`python -m bench.run`); nothing on this page is typed by hand. Three fine-tunes of one
base (slerp: two), and the base where the method has one. Each program runs as a whole process, in turn with
the others: the machine is left alone for five seconds, the inputs are read once, the program runs. For the floor
the memory it will use is touched before, so that it does not wait for the host of a virtual machine to give back
what stood free. Times are medians of the rounds; memory is the peak over them.

- **s**: wall seconds of the whole process; **CPU s**: user and system seconds.
- **MB**: peak anonymous memory (the kernel's RssAnon + RssShmem of the process tree, sampled forty times a
  second).
- **floor s**: `cat` of all inputs to nowhere, then `cp` of one model; **with fsync s**: and its fsync.
  smelt's time includes its own fsync and its check of the written file; mergekit and sd-mecha do neither.
- **sd-mecha** appears where it computes the same merge (see `bench/sdmecha_driver.py`).
- **net**: smelt's wall time less the interpreter's start (`smelt --version`, measured below).
"""


def page(everything: Mapping[str, Result]) -> str:
    """The whole page."""
    order = sorted(everything, key=lambda key: (key != MAIN_SIZE, key))
    return "\n\n".join([INTRO.rstrip(), *(section(everything[key], everything) for key in order)]) + "\n"


def publish(result: Result, docs: Path) -> None:
    """Put a result beside those of the other sizes and write the page anew."""
    data = docs / DATA
    everything = json.loads(data.read_text()) if data.exists() else {}
    key = result["size"] if result["device"] == "cpu" else f"{result['size']}-{result['device']}"
    everything[key] = result
    data.write_text(json.dumps(everything, indent=1) + "\n")
    (docs / PAGE).write_text(page(everything))


def show(result: Result) -> None:
    """The tables on the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else 200)
    heads, rows = main_table(result)
    tables = [(f"{result['size']}, {result['threads']} threads, {result['device']}", heads, rows)]
    tables.append(("bounds", ("bound", "measured", "limit", "met"), _verdict_rows(result, {})))
    if result["scaling"]:
        tables.append(("threads", ("method", "threads", "smelt s"), scaling_rows(result)))
    console.print(machine.sentence(result["facts"]))
    for title, names, lines in tables:
        table = Table(title=title)
        for name in names:
            table.add_column(name, justify="left" if name in ("method", "bound") else "right")
        for line in lines:
            table.add_row(*line)
        console.print(table)
    for text in [*agreement_lines(result), *(f"not quiet: {text}" for text in disturbances(result))]:
        console.print(text)
