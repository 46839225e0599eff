"""Text about methods that follows from their declarations: example recipes and the table in the docs."""

from __future__ import annotations

from collections.abc import Iterable

from smelt.core.method import MethodSpec, Param


def example_recipe(spec: MethodSpec, folder: str = ".", models: tuple[str, ...] = ("math", "code")) -> str:
    """A small recipe that runs; taken from the method's own example when it has one.

    >>> from smelt.methods import REGISTRY
    >>> print(example_recipe(REGISTRY["linear"]).splitlines()[0])
    merge_method: linear
    """
    if spec.example:
        return spec.example
    lines = [f"merge_method: {spec.name}"]
    if spec.base in ("required", "member"):
        lines.append(f"base_model: {folder}/base")
    names = ("base", *models[:1]) if spec.base == "member" else models[: spec.max_models or len(models)]
    lines.append("models:")
    for name in names:
        lines.append(f"  - model: {folder}/{name}")
        own = [
            f"      {param.name}: {_value(param)}" for param in spec.per_model_params if _worth_showing(param)
        ]
        lines += ["    parameters:", *own] if own else []
    shown = [f"  {param.name}: {_value(param)}" for param in spec.global_params if _worth_showing(param)]
    lines += ["parameters:", *shown] if shown else []
    lines.append("dtype: bfloat16")
    return "\n".join(lines) + "\n"


#: what a base model is to a method, in a word or two
BASE_WORDS = {
    "required": "required",
    "optional": "optional",
    "member": "one of the two",
    "ignored": "one more model",
    "forbidden": "none",
}


def _worth_showing(param: Param) -> bool:
    return param.required or param.name in ("weight", "density")


def _value(param: Param) -> str:
    return {"weight": "0.5", "density": "0.6", "t": "0.5"}.get(param.name, str(param.default))


def method_table(specs: Iterable[MethodSpec]) -> str:
    """The rows of docs/methods.md."""
    lines = ["| method | base | passes | what it does | formula |", "| --- | --- | --- | --- | --- |"]
    for spec in specs:
        name = f"[{spec.name}]({spec.paper})" if spec.paper else spec.name
        lines.append(
            f"| {name} | {BASE_WORDS[spec.base]} | {2 if spec.measure else 1} | {spec.summary} | `{spec.formula}` |"
        )
    return "\n".join(lines) + "\n"


def parameter_section(spec: MethodSpec) -> str:
    """One method in docs/methods.md: summary, parameters, example."""
    lines = [f"## {spec.name}", "", spec.summary, ""]
    if spec.params:
        lines += ["| parameter | of | default | takes | meaning |", "| --- | --- | --- | --- | --- |"]
        for param in spec.params:
            default = "required" if param.required else f"`{param.default}`"
            of = "each model" if param.per_model else "the merge"
            meaning = param.doc + (f" (no effect: {param.no_effect})" if param.no_effect else "")
            lines.append(f"| `{param.name}` | {of} | {default} | {param.expected()} | {meaning} |")
        lines.append("")
    for law, reason in spec.exempt.items():
        lines += [f"Exempt from the law *{law}*: {reason}.", ""]
    lines += ["```yaml", example_recipe(spec).rstrip(), "```", ""]
    return "\n".join(lines)
