"""``smelt methods``: what merge methods there are, and everything about one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from smelt.cli._options import Json, print_json

if TYPE_CHECKING:
    from smelt.core.method import MethodSpec

_GROUPS = ("start here", "robust", "specialised")


def COMMAND(
    name: Annotated[str | None, typer.Argument(help="Show this method in full.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """List the merge methods, or explain one: formula, parameters, example.

    Example: smelt methods ties
    """
    from smelt.methods import REGISTRY

    if name is not None:
        spec = REGISTRY.find(name)
        print_json(_as_data(spec)) if json else _show_one(spec)
    elif json:
        print_json([_as_data(spec) for spec in REGISTRY.values()])
    else:
        _show_all(list(REGISTRY.values()))


def _as_data(spec: MethodSpec) -> dict[str, Any]:
    params = [
        {"name": param.name, "doc": param.doc, "per_model": param.per_model, "required": param.required,
         "default": None if param.required else param.default, "expected": param.expected(), "no_effect": param.no_effect}
        for param in spec.params
    ]  # fmt: skip
    return {
        "name": spec.name, "summary": spec.summary, "formula": spec.formula, "base": spec.base, "paper": spec.paper,
        "group": spec.group, "random": spec.random, "passes": 2 if spec.measure else 1, "parameters": params,
        "min_models": spec.min_models, "max_models": spec.max_models, "exempt": dict(spec.exempt),
    }  # fmt: skip


def _show_all(specs: list[MethodSpec]) -> None:
    from rich.console import Console
    from rich.table import Table

    from smelt.methods._show import BASE_WORDS

    table = Table("method", "base", "passes", "what it does")
    for group in _GROUPS:
        table.add_section()
        table.add_row(f"[bold]{group}[/bold]")
        for spec in specs:
            if spec.group == group:
                table.add_row(spec.name, BASE_WORDS[spec.base], "2" if spec.measure else "1", spec.summary)
    Console().print(table, highlight=False)


def _show_one(spec: MethodSpec) -> None:
    from rich.console import Console
    from rich.table import Table

    from smelt.methods._show import BASE_WORDS, example_recipe

    console = Console()
    console.print(f"[bold]{spec.name}[/bold]  {spec.summary}", highlight=False)
    for label, value in (
        ("formula", spec.formula),
        ("base model", BASE_WORDS[spec.base]),
        ("paper", spec.paper),
    ):
        if value:
            console.print(f"{label}: {value}", highlight=False)
    table = Table("parameter", "of", "default", "takes", "meaning")
    for param in spec.params:
        default = "required" if param.required else str(param.default)
        meaning = param.doc + (f" (no effect: {param.no_effect})" if param.no_effect else "")
        table.add_row(
            param.name, "each model" if param.per_model else "the merge", default, param.expected(), meaning
        )
    if spec.params:
        console.print(table, highlight=False)
    console.print("\nexample recipe:\n")
    console.print(example_recipe(spec), highlight=False, markup=False)
