"""smelt's outputs against float64 references rounded once, and its bytes against themselves.

``python -m bench.exactness`` merges small bf16 models by every deterministic method and counts the elements
that equal the float64 result correctly rounded; merges a model with itself and compares bytes; and merges
under other thread counts, block sizes, shard sizes and hash seeds and compares bytes. Writes
docs/exactness.md; exit status 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from bench import batch, bf16, machine, make_models, stfile
from bench.exactness_cases import Exact, all_cases, schedule_cases
from bench.paths import DOCS, cache_root
from bench.report import markdown

SHARE = 0.9998  # of elements that must equal the rounded float64 result
SIZE = "small"
THREADS = ("1", "2", "8")
BLOCKS = ("65536", "131072", "1048576")
SHARDS = ("1MB", "3MB", "5GB")
SEEDS = ("0", "1", "2")


@dataclass(frozen=True, slots=True)
class Request:
    """One merge asked of smelt's command line."""

    name: str
    recipe: Mapping[str, Any]
    options: Sequence[str] = ()


def merges(requests: Sequence[Request], root: Path, *, hash_seed: str = "0") -> dict[str, Path]:
    """Carry merges out, all in one process; the output folder of each by name."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    jobs: list[dict[str, Any]] = []
    for number, request in enumerate(requests):
        path = root / f"{number:03}.yml"
        path.write_text(yaml.safe_dump(dict(request.recipe), sort_keys=False))
        out = str(root / f"{number:03}")
        jobs.append({"name": request.name, "recipe": str(path), "out": out, "options": list(request.options)})
    errors = {
        name: error for name, error in batch.run("smelt", jobs, root, hash_seed=hash_seed).items() if error
    }
    if errors:
        raise SystemExit("\n".join(f"{name}: {error}" for name, error in errors.items()))
    return {job["name"]: Path(job["out"]) for job in jobs}


def values_equal(mine: NDArray[np.uint16], exact: NDArray[np.uint16]) -> int:
    """How many bf16 patterns hold equal values (both zeros count as equal)."""
    zero = ((mine | exact) & 0x7FFF) == 0
    return int(((mine == exact) | zero).sum())


@dataclass(frozen=True, slots=True)
class Rounding:
    """One merge against its reference."""

    case: str
    models: str
    count: int
    equal: int
    ties: int  # of the others, those whose exact result stands half-way between two bf16 values

    @property
    def share(self) -> float:
        return self.equal / self.count


def at_ties(mine: NDArray[np.uint16], exact: NDArray[np.uint16], wide: NDArray[np.float64]) -> int:
    """How many unequal elements differ only because the exact result is a tie (to float64's last digits)."""
    odd = mine != exact
    low, high = (bf16.to_float32(side[odd]).astype(np.float64) for side in (mine, exact))
    off = np.abs(wide[odd] - (low + high) / 2)
    return int((off <= 1e-9 * np.abs(high - low)).sum())


def against_reference(case: Exact, out: Path, folders: Mapping[str, Path], spread: str) -> Rounding:
    """Count the elements of one merge that equal its reference."""
    inputs = {name: dict(_patterns(folders[name])) for name in case.inputs}
    equal = count = ties = 0
    for name, mine in _patterns(out):
        wide = {model: bf16.to_float32(tensors[name]).astype(np.float64) for model, tensors in inputs.items()}
        models = [wide[model] for model in case.models]
        result = case.reference(wide.get(case.base, models[0]), models)
        exact = bf16.from_float64(result)
        equal += values_equal(mine, exact)
        ties += at_ties(mine, exact, result)
        count += mine.size
    return Rounding(case.name, spread, count, equal, ties)


def _patterns(folder: Path) -> list[tuple[str, NDArray[np.uint16]]]:
    return [(name, np.asarray(array)) for name, _, array in stfile.raw_tensors(folder)]


def digest(folder: Path) -> str:
    """Hash of all tensors by name, whatever shard they stand in."""
    found = hashlib.sha256()
    for name, array in sorted(_patterns(folder), key=lambda pair: pair[0]):
        found.update(name.encode() + b"\0" + array.tobytes())
    return found.hexdigest()


def rounding_rows(scratch: Path) -> list[Rounding]:
    """Every exact case on near and far models."""
    rows = []
    for spread in make_models.DELTA_RMS:
        folders = make_models.ensure(SIZE, spread=spread)
        outputs = merges([Request(case.name, case.recipe(folders)) for case in all_cases()], scratch / spread)
        for case in all_cases():
            rows.append(row := against_reference(case, outputs[case.name], folders, spread))
            print(f"{case.name}, {spread}: {row.count - row.equal} differ, {row.ties} at ties", flush=True)
        shutil.rmtree(scratch / spread)
    return rows


def twins(scratch: Path) -> dict[str, Path]:
    """The base under four names."""
    base = make_models.ensure(SIZE)["base"]
    folders = {}
    for name in make_models.DELTA_RMS["near"]:
        folders[name] = scratch / "twins" / name
        if not folders[name].exists():
            shutil.copytree(base, folders[name])
    return folders


def self_merge_rows(scratch: Path) -> list[tuple[str, bool]]:
    """(case, whether merging a model with itself returned its bytes)."""
    folders = twins(scratch)
    wanted = digest(folders["base"])
    requests = [Request(case.name, case.recipe(folders)) for case in all_cases(identity=True)]
    rows = [(name, digest(out) == wanted) for name, out in merges(requests, scratch / "self").items()]
    for name, same in rows:
        print(f"self-merge, {name}: {'equal bytes' if same else 'DIFFERENT'}", flush=True)
    return rows


def variants() -> dict[str, tuple[str, ...]]:
    """Options that must not change a byte, by name."""
    return {
        **{f"threads {n}": ("--threads", n) for n in THREADS},
        **{f"block {n}": ("--threads", "2", "--block-size", n) for n in BLOCKS},
        **{f"shards {n}": ("--threads", "2", "--shard-size", n) for n in SHARDS},
    }


def schedule_digests(scratch: Path) -> dict[str, dict[str, str]]:
    """Digest by variant of every scheduled case; each hash seed is a process of its own."""
    folders = make_models.ensure(SIZE, spread="far")
    found: dict[str, dict[str, str]] = {}
    for case in schedule_cases():
        recipe = case.recipe(folders)
        requests = [Request(label, recipe, options) for label, options in variants().items()]
        found[case.name] = {label: digest(out) for label, out in merges(requests, scratch / "same").items()}
    for seed in SEEDS:
        requests = [Request(case.name, case.recipe(folders)) for case in schedule_cases()]
        for name, out in merges(requests, scratch / "same", hash_seed=seed).items():
            found[name][f"hash seed {seed}"] = digest(out)
    return found


def invariance_rows(scratch: Path) -> list[tuple[str, list[str]]]:
    """(method, variants whose bytes differ from the first one's)."""
    rows = []
    for name, digests in schedule_digests(scratch).items():
        first = next(iter(digests.values()))
        rows.append((name, [label for label, found in digests.items() if found != first]))
        print(f"{name}: {len(digests)} runs, differing: {rows[-1][1] or 'none'}", flush=True)
    return rows


INTRO = f"""# Exactness

Made by `python -m bench.exactness`; nothing on this page is typed by hand. Small bf16 Llama-shaped models
({{parameters:,}} parameters), "near" fine-tunes (deltas of 1e-3 to 1e-2 of the weights) and "far" ones
(0.4 to 1). The reference is the method's formula in float64, from the same bf16 inputs, rounded once to bf16
straight from float64. At least {SHARE:.2%} of the elements must be equal. A tie is an exact result half-way
between two bf16 values: there the last digit of the float64 arithmetic decides.
"""


def page(
    rounding: Sequence[Rounding],
    selves: Sequence[tuple[str, bool]],
    same: Sequence[tuple[str, list[str]]],
) -> str:
    """docs/exactness.md."""
    shape = make_models.SIZES[SIZE]
    table = [
        [r.case, r.models, f"{r.share:.4%}", str(r.count - r.equal), str(r.ties), _met(r.share >= SHARE)]
        for r in rounding
    ]
    seeds = [f"hash seed {seed}" for seed in SEEDS]
    parts = [
        INTRO.format(parameters=shape.parameters).rstrip(),
        machine.sentence(machine.facts()),
        "## Equal to the float64 result, correctly rounded",
        markdown(["method", "models", "equal", "differ", "of these at a tie", "met"], table),
        "## A model merged with itself returns its bytes",
        markdown(["method", "equal bytes"], [[name, _met(good)] for name, good in selves]),
        "## The same bytes whatever the schedule",
        f"{len(variants()) + len(SEEDS)} runs a method: {', '.join([*variants(), *seeds])}.",
        markdown(["method", "runs that differ"], [[name, ", ".join(bad) or "none"] for name, bad in same]),
    ]
    return "\n\n".join(parts) + "\n"


def _met(good: bool) -> str:
    return "yes" if good else "**no**"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--no-docs", action="store_true", help="print only")
    args = parser.parse_args()
    scratch = cache_root() / "exactness"
    with machine.unchanged_source():
        rounding, selves, same = rounding_rows(scratch), self_merge_rows(scratch), invariance_rows(scratch)
    if not args.no_docs:
        (DOCS / "exactness.md").write_text(page(rounding, selves, same))
    shutil.rmtree(scratch, ignore_errors=True)
    bad = [f"{r.case} ({r.models}) {r.share:.4%}" for r in rounding if r.share < SHARE]
    bad += [f"self-merge {name}" for name, good in selves if not good] + [name for name, odd in same if odd]
    raise SystemExit("bounds missed: " + ", ".join(bad) if bad else 0)


if __name__ == "__main__":
    main()
