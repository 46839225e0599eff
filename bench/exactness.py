"""smelt's outputs against float64 references rounded once, and its bytes against themselves.

``python -m bench.exactness`` merges small bf16 models by every deterministic method and counts the elements
that equal the float64 result correctly rounded; merges a model with itself and compares bytes; and merges
under other thread counts, block sizes, shard sizes and hash seeds and compares bytes. Writes
docs/exactness.md; exit status 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from bench import bf16, machine, make_models, stfile
from bench.exactness_cases import Exact, all_cases, schedule_cases
from bench.paths import DOCS, cache_root
from bench.report import markdown
from bench.tools import smelt_program

SHARE = 0.9998  # of elements that must equal the rounded float64 result
SIZE = "small"
THREADS = ("1", "2", "8")
BLOCKS = ("65536", "131072", "1048576")
SHARDS = ("1MB", "3MB", "5GB")
SEEDS = ("0", "1", "2")


def merge(recipe: Mapping[str, object], out: Path, *options: str, hash_seed: str = "0") -> Path:
    """One merge by the command line, as a process of its own."""
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_suffix(".yml")
    path.write_text(yaml.safe_dump(dict(recipe), sort_keys=False))
    command = [smelt_program(), "merge", str(path), str(out), "--quiet", *options]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONHASHSEED": hash_seed}
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return out


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
        for case in all_cases():
            out = merge(case.recipe(folders), scratch / "exact")
            rows.append(found := against_reference(case, out, folders, spread))
            print(
                f"{case.name}, {spread}: {found.count - found.equal} differ, {found.ties} at ties", flush=True
            )
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
    rows = []
    for case in all_cases(identity=True):
        same = digest(merge(case.recipe(folders), scratch / "self")) == wanted
        print(f"self-merge, {case.name}: {'equal bytes' if same else 'DIFFERENT'}", flush=True)
        rows.append((case.name, same))
    return rows


def variants() -> dict[str, tuple[tuple[str, ...], str]]:
    """What must not change a byte: options and hash seed by name."""
    return {
        **{f"threads {n}": (("--threads", n), "0") for n in THREADS},
        **{f"block {n}": (("--threads", "2", "--block-size", n), "0") for n in BLOCKS},
        **{f"shards {n}": (("--threads", "2", "--shard-size", n), "0") for n in SHARDS},
        **{f"hash seed {n}": (("--threads", "2"), n) for n in SEEDS},
    }


def invariance_rows(scratch: Path) -> list[tuple[str, list[str]]]:
    """(method, variants whose bytes differ from the first one's)."""
    folders = make_models.ensure(SIZE, spread="far")
    rows = []
    for case in schedule_cases():
        digests = {
            label: digest(merge(case.recipe(folders), scratch / "same", *options, hash_seed=seed))
            for label, (options, seed) in variants().items()
        }
        first = next(iter(digests.values()))
        rows.append((case.name, [label for label, found in digests.items() if found != first]))
        print(f"{case.name}: {len(digests)} runs, differing: {rows[-1][1] or 'none'}", flush=True)
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
    parts = [
        INTRO.format(parameters=shape.parameters).rstrip(),
        machine.sentence(machine.facts()),
        "## Equal to the float64 result, correctly rounded",
        markdown(["method", "models", "equal", "differ", "of these at a tie", "met"], table),
        "## A model merged with itself returns its bytes",
        markdown(["method", "equal bytes"], [[name, _met(good)] for name, good in selves]),
        "## The same bytes whatever the schedule",
        f"{len(variants())} runs a method: {', '.join(variants())}.",
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
    rounding, selves, same = rounding_rows(scratch), self_merge_rows(scratch), invariance_rows(scratch)
    if not args.no_docs:
        (DOCS / "exactness.md").write_text(page(rounding, selves, same))
    shutil.rmtree(scratch, ignore_errors=True)
    bad = [f"{r.case} ({r.models}) {r.share:.4%}" for r in rounding if r.share < SHARE]
    bad += [f"self-merge {name}" for name, good in selves if not good] + [name for name, odd in same if odd]
    raise SystemExit("bounds missed: " + ", ".join(bad) if bad else 0)


if __name__ == "__main__":
    main()
