"""Runs many recipes with mergekit in one process; executed by the Python of its own environment.

``python mergekit_driver.py JOBS.json RESULTS.jsonl``: a job is {name, recipe, out}; a result {name, error}.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path

import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions


def run(recipe: Path, out: Path) -> str:
    """Merge; returns the error's name and first line, empty when it succeeded."""
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, random_seed=11, quiet=True)
    try:
        torch.manual_seed(11)
        config = MergeConfiguration.model_validate(yaml.safe_load(recipe.read_text()))
        run_merge(config, str(out), options=options)
    except Exception as error:  # whatever it is, it is this peer's answer to this recipe
        text = str(error).strip().splitlines()
        return f"{type(error).__name__}: {text[0] if text else ''}"[:300]
    return ""


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    jobs = json.loads(Path(sys.argv[1]).read_text())
    with Path(sys.argv[2]).open("w") as results:
        for job in jobs:
            error = run(Path(job["recipe"]), Path(job["out"]))
            results.write(json.dumps({"name": job["name"], "error": error}) + "\n")
            results.flush()


if __name__ == "__main__":
    main()
