"""Compare two files of answers with a judge: the reference project's script, as ``smelt latent judge``."""

from __future__ import annotations

import sys

import typer

from smelt.cli import report
from smelt.core.errors import SmeltError
from smelt.evaluate.judge_cli import judge


def main() -> None:
    """Run the command; errors are printed, never raised at the user."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(judge)
    try:
        app()
    except SmeltError as error:
        report(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted: what was judged is saved, the same command continues", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
