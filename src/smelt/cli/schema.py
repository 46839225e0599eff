"""``smelt schema``: the JSON Schema of recipes, for editors that complete and check YAML."""

from __future__ import annotations

from pathlib import Path

import typer


def COMMAND(
    output: Path | None = typer.Option(
        None, "--output", "-o", metavar="FILE", help="Write to this file instead of the terminal."
    ),
) -> None:
    """Print the JSON Schema of recipes, with the parameters of every merge method.

    Point an editor at it to complete keys, methods and parameters while writing a recipe:

        smelt schema > recipe.schema.json

    and, as the first line of a recipe:

        # yaml-language-server: $schema=recipe.schema.json
    """
    import json

    from smelt.core.errors import OutputError
    from smelt.methods import REGISTRY
    from smelt.recipe.schema import json_schema

    text = json.dumps(json_schema(REGISTRY), indent=2, ensure_ascii=False) + "\n"
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"{str(output)!r} cannot be written: {reason}", expected="a file in an existing folder"
        ) from None
