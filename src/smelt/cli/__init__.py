"""The command line: one small file per command, discovered; heavy libraries are imported inside commands.

A module in this folder whose name has no leading underscore is a command named after the file
(``judge_bench.py`` -> ``smelt judge-bench``). It defines either ``COMMAND``, a typer function, or
``APP``, a ``typer.Typer`` with sub-commands.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import pkgutil
import signal
import sys

import typer

from smelt._version import __version__
from smelt.core.errors import SmeltError


def build_app() -> typer.Typer:
    """The whole command tree."""
    app = typer.Typer(
        name="smelt",
        help="Compose language models without training: streaming, exact, verified.",
        no_args_is_help=True,
        rich_markup_mode="rich",
        add_completion=True,
        pretty_exceptions_enable=False,
    )

    @app.callback(invoke_without_command=True)
    def root(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
        if version:
            typer.echo(f"smelt {__version__}")
            raise typer.Exit()

    for info in sorted(pkgutil.iter_modules(__path__), key=lambda item: item.name):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{__name__}.{info.name}")
        name = info.name.replace("_", "-")
        if hasattr(module, "APP"):
            app.add_typer(module.APP, name=name)
        else:
            app.command(name)(module.COMMAND)
    return app


def report(error: SmeltError, as_json: bool = False) -> None:
    """Print an error: one line a problem on stderr, or one JSON document on stdout; never a traceback."""
    if as_json:
        import json
        from dataclasses import asdict

        print(json.dumps({"ok": False, "problems": [asdict(item) for item in error.problems]}, indent=2))
        return
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)


def main(argv: list[str] | None = None) -> None:
    """Entry point of the ``smelt`` script."""
    signal.signal(signal.SIGTERM, _interrupt)
    _start_lean()
    try:
        build_app()(args=argv, prog_name="smelt")
    except SmeltError as error:
        report(error, as_json="--json" in (sys.argv[1:] if argv is None else argv))
        sys.exit(error.exit_code)
    except SystemExit as leaving:
        if leaving.code == 130:
            print("interrupted: nothing was left half-written", file=sys.stderr)
        raise


def _start_lean() -> None:
    """What a short-lived process can do without: looking for garbage cycles every 700 objects while modules load, and
    once more among all that is alive when it ends (a twelfth of a second); BLAS threads that spin beside ours (numpy
    starts them on import; torch has its own); pydantic's search for plugins in every installed package."""
    gc.set_threshold(1_000_000, 20, 100)
    atexit.register(gc.freeze)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")


def _interrupt(number: int, frame: object) -> None:
    """A polite kill ends like Ctrl-C: work folders are removed."""
    raise KeyboardInterrupt
