"""smelt against mergekit, recipe by recipe, tensor by tensor; ``python -m bench.parity`` writes the page.

Both programs read the same YAML. The peer runs in its own environment, all its recipes in one process. Exit
status 1 when a case that is not a known defect of the peer differs by more than its tolerance.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bench import batch, machine, parity_models, peers, stfile
from bench.parity_cases import Case, all_cases
from bench.parity_random import judge_random
from bench.paths import DOCS, cache_root
from bench.report import markdown

CONFIG_KEYS = (
    "architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size",
    "num_attention_heads", "num_key_value_heads", "tie_word_embeddings", "dtype", "rms_norm_eps",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one case."""

    case: Case
    agrees: bool
    found: str  # what is printed in the table
    largest: float | None = None


def _filled(value: Any, folders: Mapping[str, Path]) -> Any:
    """A recipe with ``$name`` replaced by that model's folder."""
    if isinstance(value, dict):
        return {key: _filled(item, folders) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, folders) for item in value]
    if isinstance(value, str) and value.startswith("$"):
        return str(folders[value[1:]])
    return value


def prepare(cases: Sequence[Case], root: Path) -> list[dict[str, Any]]:
    """Write every recipe; returns the jobs without their outputs."""
    folders = parity_models.ensure()
    shutil.rmtree(root, ignore_errors=True)
    (root / "recipes").mkdir(parents=True)
    jobs = []
    for number, case in enumerate(cases):
        path = root / "recipes" / f"{number:03}.yml"
        text = yaml.safe_dump(_filled(case.recipe, folders[case.family]), sort_keys=False)
        path.write_text(f"# {case.name}\n{text}")
        jobs.append({"name": case.name, "recipe": str(path), "number": number})
    return jobs


def run_tool(tool: str, jobs: Sequence[Mapping[str, Any]], root: Path) -> dict[str, str]:
    """Run all jobs with one tool; errors by case name."""
    return batch.run(tool, [{**job, "out": str(root / tool / f"{job['number']:03}")} for job in jobs], root)


def difference(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[float, str]:
    """Largest |a-b| over the largest |b| of its tensor, over all tensors, and the tensor's name."""
    worst, where = 0.0, ""
    for name, b in theirs.items():
        a = mine[name].astype(np.float64)
        scale = float(np.abs(b).max()) or 1.0
        gap = float(np.abs(a - b).max()) / scale if np.isfinite(b).all() else np.inf
        if gap > worst:
            worst, where = gap, name
    return worst, where


def _structure(left: Path, right: Path) -> list[str]:
    """What differs besides values: tensors, dtypes, shapes, config."""
    kinds = [
        {name: (dtype, array.shape) for name, dtype, array in stfile.raw_tensors(side)}
        for side in (left, right)
    ]
    problems = [f"{name} only in one" for name in sorted(kinds[0].keys() ^ kinds[1].keys())]
    shared = kinds[0].keys() & kinds[1].keys()
    problems += [
        f"{name}: {kinds[0][name]} and {kinds[1][name]}"
        for name in shared
        if kinds[0][name] != kinds[1][name]
    ]
    mine, theirs = (json.loads((side / "config.json").read_text()) for side in (left, right))
    for key in CONFIG_KEYS:
        if _config_value(mine, key) != _config_value(theirs, key):
            problems.append(f"config {key}: {mine.get(key)!r} and {theirs.get(key)!r}")
    return problems


def _config_value(config: Mapping[str, Any], key: str) -> Any:
    """The dtype has an old and a new name."""
    return config.get("dtype", config.get("torch_dtype")) if key == "dtype" else config.get(key)


def judge(case: Case, left: Path, right: Path, errors: tuple[str, str]) -> Outcome:
    """Compare the two outputs of one case."""
    if case.kind == "refuse":
        return Outcome(
            case, errors[0].startswith("refused:") and bool(errors[1]), f"smelt: {errors[0] or 'accepted'}"
        )
    if any(errors):
        said = [
            f"{tool}: {error}" for tool, error in zip(("smelt", "mergekit"), errors, strict=True) if error
        ]
        return Outcome(case, False, "; ".join(said))
    if problems := _structure(left, right):
        return Outcome(case, False, "; ".join(problems[:3]))
    mine, theirs = stfile.load(left), stfile.load(right)
    if case.kind == "random":
        return Outcome(case, *judge_random(case, mine, theirs))
    largest, where = difference(mine, theirs)
    agrees = largest <= case.tolerance
    return Outcome(case, agrees, f"{largest:.1e}" + ("" if agrees else f" ({where})"), largest)


def compare(cases: Sequence[Case], root: Path, *, reuse_peer: bool) -> list[Outcome]:
    """Run both programs on every case and judge."""
    kept = root.with_name("peer-kept")
    if reuse_peer and (root / "mergekit").exists():
        shutil.rmtree(kept, ignore_errors=True)
        shutil.move(root, kept)
    jobs = prepare(cases, root)
    same = reuse_peer and kept.exists() and _same_recipes(root, kept)
    if same:
        for name in ("mergekit", "mergekit.jsonl"):
            shutil.move(kept / name, root / name)
        lines = map(json.loads, (root / "mergekit.jsonl").read_text().splitlines())
        theirs = {line["name"]: line["error"] for line in lines}
    else:
        theirs = run_tool("mergekit", jobs, root)
    shutil.rmtree(kept, ignore_errors=True)
    mine = run_tool("smelt", jobs, root)
    outcomes = []
    for case, job in zip(cases, jobs, strict=True):
        folder = f"{job['number']:03}"
        errors = (mine[case.name], theirs[case.name])
        outcomes.append(judge(case, root / "smelt" / folder, root / "mergekit" / folder, errors))
    return outcomes


def _same_recipes(left: Path, right: Path) -> bool:
    texts = [{p.name: p.read_text() for p in (side / "recipes").iterdir()} for side in (left, right)]
    return texts[0] == texts[1]


INTRO = """# Parity with mergekit

Made by `make parity` (`python -m bench.parity`); nothing on this page is typed by hand. Both programs read
the same recipes over the same tiny models and their outputs are compared tensor by tensor: names, shapes,
dtypes, config, values. **difference** is the largest |a - b| in any tensor over the largest |b| of that
tensor; fp32 cases must stay within 1e-5. Random methods draw other masks, so what they must have in common is
compared: the share of elements kept, their signs, and the size of the task vector (L1 norm when rescaled).
"""


def page(outcomes: Sequence[Outcome]) -> str:
    """The whole page."""
    agreeing = [o for o in outcomes if o.case.kind != "defect"]
    defects = [o for o in outcomes if o.case.kind == "defect"]
    good = sum(o.agrees for o in agreeing)
    rows = [[o.case.name, "yes" if o.agrees else "**no**", _escaped(o.found), o.case.why] for o in agreeing]
    known = [
        [o.case.name, "agrees here" if o.agrees else "differs", _escaped(o.found), o.case.why]
        for o in defects
    ]
    parts = [
        INTRO.rstrip(),
        f"{machine.sentence(machine.facts())} Peer: {peers.versions(peers.MERGEKIT)}.",
        f"{good} of {len(agreeing)} cases agree; {len(defects)} more are known defects of the peer.",
        "## Cases",
        markdown(["case", "agrees", "difference", "why"], rows),
        "## Known differences",
        markdown(["case", "outcome", "what was seen", "why"], known),
    ]
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    """Table cells hold no pipes and no folders of this machine."""
    return text.replace("|", "\\|").replace(str(cache_root()), "...").replace("\n", " ")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="cases whose name contains this; docs are left alone")
    parser.add_argument(
        "--reuse-peer", action="store_true", help="keep the peer's outputs of unchanged recipes"
    )
    args = parser.parse_args()
    cases = [case for case in all_cases() if args.only in case.name]
    root = cache_root() / "parity" / ("some" if args.only else "run")
    with machine.unchanged_source():
        outcomes = compare(cases, root, reuse_peer=args.reuse_peer)
    wrong = [o for o in outcomes if not o.agrees and o.case.kind != "defect"]
    for outcome in outcomes:
        mark = "ok  " if outcome.agrees else ("diff" if outcome.case.kind == "defect" else "FAIL")
        print(f"{mark} {outcome.case.name}: {outcome.found}")
    if not args.only:
        (DOCS / "parity.md").write_text(page(outcomes))
    print(f"{len(outcomes)} cases, {len(wrong)} beyond tolerance")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
