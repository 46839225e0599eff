"""``load_recipe``: a path, YAML text or a mapping becomes a checked Recipe, or an error with all problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smelt.core.errors import RecipeError
from smelt.core.method import MethodSpec
from smelt.recipe.cursor import Cursor, Findings, describe
from smelt.recipe.document import MAX_BYTES, Document, parse_yaml
from smelt.recipe.model import Recipe
from smelt.recipe.read import Scope, read_recipe


def load_recipe(
    source: str | Path | Mapping[str, Any] | Recipe,
    *,
    methods: Mapping[str, MethodSpec],
    base_dir: Path | None = None,
) -> Recipe:
    """Read and check a recipe: the path of a YAML file, YAML text of several lines, or a mapping.

    ``base_dir``: where relative paths are looked up besides the working directory; by default the folder
    of the file.
    Raises RecipeError with all problems at once; what is odd but allowed is in ``Recipe.warnings``.
    """
    if isinstance(source, Recipe):
        return source
    findings = Findings()
    files: tuple[Path, ...] = ()
    if isinstance(source, Mapping):
        document = Document(source, folder=base_dir)
    elif isinstance(source, str) and "\n" in source:
        document = _parse(source, "", base_dir, findings)
    elif not isinstance(source, str | Path):
        raise RecipeError(f"a recipe cannot be {describe(source)}", expected="a path, YAML text or a mapping")
    else:
        path = Path(source)
        document = _parse(read_file(path), "", base_dir or path.parent, findings)
        files = (path.resolve(),)
    return _finish(Cursor(document.data, document, findings), Scope(methods, _open_file, files))


def _finish(cursor: Cursor, scope: Scope) -> Recipe:
    """The recipe at the cursor, with its warnings, or every error."""
    recipe = read_recipe(cursor, scope)
    findings = cursor.findings
    if findings.errors or recipe is None:
        raise RecipeError(findings.errors)
    return recipe.model_copy(update={"warnings": tuple(findings.warnings)})


def _parse(text: str, label: str, folder: Path | None, findings: Findings) -> Document:
    """YAML text as a document; an empty one is an error."""
    document, problems = parse_yaml(text, label=label, folder=folder)
    findings.errors.extend(problems)
    if document.data is None:
        raise RecipeError(
            "the recipe is empty", where=label, expected="a mapping with merge_method and models"
        )
    return document


def read_file(path: Path) -> str:
    """The text of a recipe file, or an error that says why it cannot be read."""
    try:
        if not path.exists():
            raise RecipeError(
                f"no recipe file {str(path)!r}", fix="check the path, or pass YAML text of several lines"
            )
        if path.is_dir():
            raise RecipeError(f"{str(path)!r} is a folder", expected="a YAML file")
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{str(path)!r} is larger than 1 MiB", fix="recipes hold settings, not data")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise RecipeError(f"{str(path)!r} is not text", expected="a YAML file in UTF-8") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{str(path)!r} cannot be read: {error}") from None


def _open_file(cursor: Cursor, file: Path, scope: Scope) -> Cursor | None:
    """A nested recipe's file; its problems go to the findings of the recipe that names it."""
    findings = cursor.findings
    try:
        document = _parse(read_file(file), file.name, file.parent, findings)
    except RecipeError as error:
        findings.errors.extend(error.problems)
        return None
    return Cursor(document.data, document, findings)


def build_recipe(
    merge_method: str,
    models: Sequence[Any] | None,
    base_model: Any,
    parameters: Mapping[str, Any] | None,
    methods: Mapping[str, MethodSpec],
    fields: Mapping[str, Any],
) -> Recipe:
    """``Recipe.build``: the same walk over data that may hold references, recipes and settings ready made."""
    data: dict[str, Any] = {
        "merge_method": merge_method,
        "base_model": base_model,
        "parameters": parameters,
        **fields,
    }
    if models is not None:
        data["models"] = [_entry_data(item) for item in models]
    return load_recipe({key: value for key, value in data.items() if value is not None}, methods=methods)


def _entry_data(item: Any) -> Any:
    """A model, (model, settings) or an entry as the mapping a recipe would hold."""
    if isinstance(item, tuple) and len(item) == 2:
        return {"model": item[0], "parameters": item[1]}
    if isinstance(item, Mapping) and "model" in item and not {"lora", "override_architecture"} & set(item):
        return item
    return item if hasattr(item, "parameters") and hasattr(item, "model") else {"model": item}
