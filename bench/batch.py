"""Many merges in one process of smelt or of the peer, so that imports are paid once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import peers

HERE = Path(__file__).parent


def run(tool: str, jobs: Sequence[Mapping[str, Any]], root: Path, *, hash_seed: str = "0") -> dict[str, str]:
    """Run jobs of {name, recipe, out, options} with smelt or mergekit; errors by name, empty if none."""
    smelt = tool == "smelt"
    python = Path(sys.executable) if smelt else peers.ensure(peers.MERGEKIT)
    driver = HERE / ("smelt_driver.py" if smelt else "mergekit_driver.py")
    listing, results, log = root / f"{tool}.json", root / f"{tool}.jsonl", root / f"{tool}.log"
    listing.write_text(json.dumps(list(jobs)))
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [str(python), str(driver), str(listing), str(results)]
    with log.open("wb") as sink:
        done = subprocess.run(command, stdout=sink, stderr=sink, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"the {tool} driver ended with status {done.returncode}; see {log}")
    return {line["name"]: line["error"] for line in map(json.loads, results.read_text().splitlines())}
