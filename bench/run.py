"""The benchmark: smelt and its peers doing the same merges in turn, as whole processes, beside the I/O floor.

``python -m bench.run --size 1b`` makes the models, builds the peers' environments, measures, prints one table
and writes ``docs/benchmarks.md`` and ``docs/benchmarks.json``. A run can be stopped and continued with
``--run-id``: what was already measured on this machine since its start is kept, all else is measured anew.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import smelt
from bench import agree, floor, machine, make_models, measure, peers, records, report, startup, tools
from bench.paths import DOCS, runs_dir, scratch_dir
from bench.recipes import BENCHES, Bench
from bench.shapes import SIZES, size_named
from bench.stfile import files_of

SCALING = ("linear", "slerp", "ties")
MARGIN = 1_000_000_000  # bytes of memory beside the output that are made ready before the floor
PAGE_CACHE_SHARE = 0.6  # inputs larger than this share of the memory cannot be kept warm


class Runner:
    """Measures the rows of one size, one run id."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.size: str = args.size
        self.folders = make_models.ensure(self.size)
        self.store = records.Store(runs_dir() / args.run_id / f"{self.size}-{args.device.replace(':', '')}")
        self.scratch = scratch_dir() / args.run_id
        self.scratch.mkdir(parents=True, exist_ok=True)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def files(self, names: tuple[str, ...]) -> list[Path]:
        return [path for name in names for path in files_of(self.folders[name])]

    def job(self, bench: Bench, tool: str, threads: int) -> tools.Job:
        recipe = bench.write(self.folders, self.scratch / f"{bench.method}.yml")
        out = self.scratch / f"out-{tool}"
        return tools.Job(bench, recipe, self.folders, out, threads, self.args.device)

    def warm_kernels(self, benches: list[Bench]) -> None:
        """One small merge per method, large enough to be compiled: that happens once per machine and is not timed."""
        folders = make_models.ensure("small")
        compileall.compile_dir(str(Path(smelt.__file__).parent), quiet=1)  # as pip did for the peers
        for bench in benches:
            out = self.scratch / "tiny"
            shutil.rmtree(out, ignore_errors=True)
            recipe = bench.write(folders, self.scratch / f"tiny-{bench.method}.yml")
            job = tools.Job(bench, recipe, folders, out, self.args.threads, self.args.device)
            self._checked(measure.run(tools.smelt(job), self.scratch / "tiny.log"), "smelt", bench.method)
            shutil.rmtree(out, ignore_errors=True)

    def _checked(self, usage: measure.Usage, tool: str, method: str) -> measure.Usage:
        if usage.code:
            raise SystemExit(f"{tool} {method} ended with status {usage.code}:\n{usage.tail}")
        return usage

    def floor(self, bench: Bench, round_: int) -> dict[str, Any]:
        """The floor beside one round."""
        key = f"{bench.method}/floor-{round_}"
        if found := self.store.get(key, "floor"):
            return found
        if self.inputs_fit(bench):
            floor.warm(self.files(bench.inputs))
        floor.settle(self.output_bytes + MARGIN)
        output = files_of(self.folders[bench.inputs[0]])  # one that was read: cp must not wait for the disk
        fresh = floor.measure(self.files(bench.inputs), output, self.scratch / "floor")
        return self.store.put(key, "floor", fresh.as_dict())

    def timed(
        self, bench: Bench, tool: str, round_: int, threads: int | None = None
    ) -> dict[str, Any] | None:
        """One run of one tool; None where the tool does not offer the merge."""
        count = threads or self.args.threads
        job = self.job(bench, tool, count)
        if not tools.can(tool, job):
            return None
        key = f"{bench.method}/{tool}-t{count}-{round_}"
        if found := self.store.get(key, tools.subject(tool)):
            return found
        if tool != "smelt" and self.args.no_peer:
            return None
        self.say(f"  {bench.method}: {tool}, {count} threads, round {round_ + 1}")
        shutil.rmtree(job.out, ignore_errors=True)
        floor.rest()
        if self.inputs_fit(bench):
            floor.warm(self.files(bench.inputs))
        usage = measure.run(tools.COMMANDS[tool](job), self.scratch / f"{bench.method}-{tool}.log")
        if tool == "smelt":
            self._checked(usage, tool, bench.method)
        if usage.code:
            self.say(f"  {tool} failed: {usage.tail.strip().splitlines()[-1:]}")
        return self.store.put(key, tools.subject(tool), usage.as_dict())

    @property
    def output_bytes(self) -> int:
        """Size of the merged model."""
        return sum(path.stat().st_size for path in files_of(self.folders["base"]))

    def inputs_fit(self, bench: Bench) -> bool:
        """Whether the page cache can hold the inputs and the output."""
        needed = sum(path.stat().st_size for path in self.files((*bench.inputs, "base")))
        return needed < PAGE_CACHE_SHARE * machine.hardware()["memory_gb"] * 1e9

    def agreement(self, bench: Bench, peer: str) -> dict[str, Any] | None:
        """Compare the outputs left by the last runs of smelt and a peer."""
        key = f"{bench.method}/agreement-{peer}"
        subject = f"{tools.subject('smelt')} and {tools.subject(peer)}"
        if found := self.store.get(key, subject):
            return found
        mine, theirs = self.scratch / "out-smelt", self.scratch / f"out-{peer}"
        if not (mine.exists() and theirs.exists() and files_of(theirs)):
            return None
        return self.store.put(key, subject, agree.compare(mine, theirs).as_dict())

    def row(self, bench: Bench) -> dict[str, Any]:
        """All rounds of one method: floor, smelt and the peers in turn."""
        self.say(f"{bench.method}")
        rounds: dict[str, list[dict[str, Any]]] = {}
        agreements: dict[str, Any] = {}
        self.clear_outputs()
        for round_ in range(self.args.repeat):
            rounds.setdefault("floor", []).append(self.floor(bench, round_))
            for tool in ("smelt", *self.args.peers):
                if tool != "smelt" and round_ >= self.args.peer_repeat:
                    continue
                if found := self.timed(bench, tool, round_):
                    rounds.setdefault(tool, []).append(found)
        for peer in self.args.peers:
            agreements[peer] = self.agreement(bench, peer)
        if not self.args.keep:
            self.clear_outputs()
        return {
            "method": bench.method,
            "inputs": len(bench.inputs),
            "warm": self.inputs_fit(bench),
            "bound_speedup": bench.speedup,
            "bound_floor": bench.over_floor,
            "rounds": rounds,
            "agreement": agreements,
        }

    def clear_outputs(self) -> None:
        for folder in self.scratch.glob("out-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def scaling(self, benches: list[Bench]) -> list[dict[str, Any]]:
        """smelt alone at one thread and at all."""
        rows = []
        for bench in benches:
            for threads in sorted({1, self.args.threads}):
                runs = [self.timed(bench, "smelt", round_, threads) for round_ in range(self.args.repeat)]
                walls = [run["wall"] for run in runs if run]
                rows.append({"method": bench.method, "threads": threads, "walls": walls})
            self.clear_outputs()
        return rows


def measure_all(args: argparse.Namespace) -> dict[str, Any]:
    """Everything of one size as plain data, for the report."""
    chosen = [BENCHES[name] for name in args.methods]
    for peer in args.peers:
        if not args.no_peer:
            peers.ensure(peers.PEERS[peer])
    runner = Runner(args)
    runner.warm_kernels(chosen)
    result = {
        "size": args.size,
        "parameters": SIZES[args.size].parameters,
        "run_id": args.run_id,
        "device": args.device,
        "threads": args.threads,
        "repeat": args.repeat,
        "facts": machine.facts(),
        "peers": {
            name: peers.versions(peers.PEERS[name])
            for name in args.peers
            if peers.PEERS[name].python.exists()
        },
        "startup": startup.measure_startup(runner.folders, runner.scratch),
        "rows": [runner.row(bench) for bench in chosen],
        "scaling": runner.scaling([b for b in chosen if b.method in SCALING]) if args.scaling else [],
    }
    if not args.keep:
        shutil.rmtree(runner.scratch, ignore_errors=True)
    return result


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--size", default="1.24b", help="tiny, 0.33b, 1.24b (1b) or 3.2b (3b)")
    add("--methods", default=",".join(BENCHES), help="comma-separated; default all")
    add(
        "--peers",
        default=None,
        help="comma-separated; default both, none at 3.2b (mergekit needs over 24 GB there)",
    )
    add(
        "--no-peer",
        action="store_true",
        help="start no peer; reuse its records of the same run id and machine",
    )
    add("--repeat", type=int, default=3, help="rounds of smelt and of the floor")
    add("--peer-repeat", type=int, default=1, help="rounds of the peers (they are slow)")
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--no-scaling", dest="scaling", action="store_false", help="leave the thread scaling out")
    add("--keep", action="store_true", help="keep the merged models of the last run")
    add("--run-id", default=None, help=f"continue a run; {records.LATEST!r} for the newest")
    add("--no-docs", action="store_true", help="print only, leave docs/ alone")
    add("--strict", action="store_true", help="exit 1 when a bound is missed")
    args = parser.parse_args(argv)
    args.size = size_named(args.size)
    args.methods = _chosen(args.methods, list(BENCHES), "method")
    default_peers = "" if args.size == "3.2b" or args.device != "cpu" else ",".join(peers.PEERS)
    args.peers = _chosen(default_peers if args.peers is None else args.peers, list(peers.PEERS), "peer")
    if args.run_id == records.LATEST:
        args.run_id = records.latest_run_id()
    args.run_id = args.run_id or records.new_run_id()
    return args


def _chosen(text: str, known: list[str], what: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in known:
            raise SystemExit(f"unknown {what} {name!r}; known: {', '.join(known)}")
    return names


def main() -> None:
    args = parse()
    print(f"run id {args.run_id} (continue with --run-id {args.run_id})", file=sys.stderr)
    result = measure_all(args)
    report.show(result)
    if not args.no_docs:
        report.publish(result, DOCS)
    (runs_dir() / args.run_id / f"result-{args.size}-{args.device.replace(':', '')}.json").write_text(
        json.dumps(result, indent=1)
    )
    if args.strict and report.missed(result):
        raise SystemExit("bounds missed: " + "; ".join(report.missed(result)))


if __name__ == "__main__":
    main()
