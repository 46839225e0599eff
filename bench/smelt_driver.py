"""Runs many recipes with smelt's command line in one process; the same jobs as the peer's driver."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from typer.testing import CliRunner

from smelt.cli import build_app
from smelt.core.errors import SmeltError


def run(recipe: Path, out: Path, options: list[str]) -> str:
    """Merge; returns the error as a user reads it, empty when it succeeded."""
    arguments = ["merge", str(recipe), str(out), "--quiet", *options]
    done = CliRunner().invoke(build_app(), arguments)
    if isinstance(done.exception, SmeltError):
        return f"refused: {done.exception.problems[0]}"[:300]
    if done.exit_code:
        return f"{done.exception!r} {done.output.strip()}"[:300]
    return ""


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    with Path(sys.argv[2]).open("w") as results:
        for job in jobs:
            error = run(Path(job["recipe"]), Path(job["out"]), job.get("options", []))
            results.write(json.dumps({"name": job["name"], "error": error}) + "\n")
            results.flush()


if __name__ == "__main__":
    main()
