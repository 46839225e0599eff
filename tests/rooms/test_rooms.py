"""The rooms of DESIGN section 5: who may import whom, what stays light, what is public."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import smelt
import tiny

SOURCE = Path(smelt.__file__).parent
DESIGN = SOURCE.parents[1] / "DESIGN.md"
HEAVY = (
    "torch",
    "transformers",
    "numba",
    "llvmlite",
    "matplotlib",
    "fastapi",
    "uvicorn",
    "openai",
    "lm_eval",
    "peft",
    "scipy",
    "pandas",
)
#: modules that may load torch as soon as they are imported
WITH_TORCH = ("latent/", "numerics/torch_backend.py")
#: imports the table does not allow, each inside a function, and why they stand
EXCEPTIONS = {
    (
        "latent/baselines.py",
        "api",
    ): "weight merges that a latent merge is compared with are made as a user makes them"
}


def table() -> dict[str, tuple[int, str]]:
    """Room -> (level, what it may import) from the page itself."""
    found = {}
    section = DESIGN.read_text().split("## 5. Rooms")[1].split("## 6.")[0]
    for level, names, _, may in re.findall(r"^\| (\d) \| (.+?) \| (.+?) \| (.+?) \|$", section, re.MULTILINE):
        found |= {name: (int(level), may) for name in re.findall(r"`(\w+)`", names)}
    return found


def allowed(room: str) -> set[str]:
    """The rooms that a room may import."""
    rooms = table()
    level, may = rooms[room]
    below = {other for other, (its_level, _) in rooms.items() if its_level < level}
    if may.startswith(("all", "engine and below")):
        return below
    return set(re.findall(r"\w+", may)) & set(rooms)


def imports(path: Path, *, top_only: bool = False) -> Iterator[str]:
    """Dotted names of all modules a file imports; with ``top_only`` those loaded when it is imported."""
    tree = ast.parse(path.read_text())
    for node in _at_import(tree.body) if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield from (
                [f"smelt.{alias.name}" for alias in node.names] if node.module == "smelt" else [node.module]
            )


def _at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        for inner in ("body", "orelse", "handlers", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler | ast.ClassDef):
                yield from _at_import(getattr(node, inner, []))


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str | None:
    """The room a file lies in; None for the public face and the version."""
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else None


def smelt_rooms(path: Path) -> set[str]:
    """Rooms (or top modules) of smelt that a file imports, its own left out."""
    found = {
        name.split(".")[1] if "." in name else "api"
        for name in imports(path)
        if name.split(".")[0] == "smelt"
    }
    return found - {room_of(path), "_version", "__version__"}


def test_every_room_is_in_the_table() -> None:
    rooms = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists()}
    assert rooms <= set(table()), rooms - set(table())
    assert len(rooms) >= 9


def test_rooms_import_only_what_the_table_allows() -> None:
    found = {
        (str(path.relative_to(SOURCE)), name)
        for path in files()
        if (room := room_of(path)) is not None
        for name in smelt_rooms(path) - allowed(room)
    }
    assert found == set(EXCEPTIONS)


def test_exceptions_are_inside_functions() -> None:
    for file, name in EXCEPTIONS:
        loaded = {
            item.split(".")[1] if "." in item else "api"
            for item in imports(SOURCE / file, top_only=True)
            if item.startswith("smelt")
        }
        assert name not in loaded


def test_rooms_have_no_cycles() -> None:
    graph: dict[str, set[str]] = {}
    for path in files():
        if (room := room_of(path)) is not None:
            names = {
                name for name in smelt_rooms(path) if (str(path.relative_to(SOURCE)), name) not in EXCEPTIONS
            }
            graph.setdefault(room, set()).update(names)
    assert next(iter(TopologicalSorter(graph).static_order())) == "core"


def test_core_stands_on_the_standard_library_alone() -> None:
    """``native`` tells Numba and LLVM what to do; it imports them when asked to."""
    for path in (SOURCE / "core").glob("*.py"):
        outside = (
            {name.split(".")[0] for name in imports(path, top_only=path.stem == "native")}
            - set(sys.stdlib_module_names)
            - {"smelt", "__future__"}
        )
        assert not outside, path


def test_heavy_libraries_are_loaded_only_where_they_are_the_subject() -> None:
    found = set()
    for path in files():
        name = str(path.relative_to(SOURCE))
        heavy = {item.split(".")[0] for item in imports(path, top_only=True)} & set(HEAVY)
        compiler = heavy & {"numba", "llvmlite"}
        if (heavy - compiler and not name.startswith(WITH_TORCH)) or (
            compiler and name not in ("numerics/bits.py", "checkpoint/loops.py")
        ):
            found.add((name, *heavy))
    assert not found


def test_commands_import_their_work_inside_the_command() -> None:
    for path in (SOURCE / "cli").glob("*.py"):
        rooms = {name.split(".")[1] for name in imports(path, top_only=True) if name.startswith("smelt.")}
        assert rooms <= {"core", "cli", "_version"}, path.name


def test_every_public_name_exists() -> None:
    checked = 0
    for info in pkgutil.walk_packages(smelt.__path__, "smelt."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for name in getattr(module, "__all__", ()):
            assert getattr(module, name) is not None, f"{info.name}.{name}"
            checked += 1
    assert all(getattr(smelt, name) is not None for name in smelt.__all__)
    assert checked > 40


def test_a_wrong_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'tise'"):
        smelt.tise  # type: ignore[attr-defined]


def loaded_after(code: str, *arguments: str) -> set[str]:
    """Heavy libraries in memory after a fresh interpreter ran some code."""
    script = f"import json, sys\n{code}\nprint(json.dumps([name for name in {(*HEAVY, 'numpy')!r} if name in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_smelt_and_building_the_command_line_loads_nothing_heavy() -> None:
    assert loaded_after("import smelt") == set()
    assert loaded_after("import smelt.cli; smelt.cli.build_app()") == set()


MERGE = """
from smelt.cli import main
try:
    main(["merge", sys.argv[1], sys.argv[2], "--quiet"])
except SystemExit as end:
    assert not end.code, end.code
"""


@pytest.mark.parametrize(("hidden", "loaded"), [(8, set()), (512, {"llvmlite"})], ids=["small", "large"])
def test_merging_on_the_cpu_needs_neither_torch_nor_transformers(
    tmp_path: Path, hidden: int, loaded: set[str]
) -> None:
    """A small merge loads no compiled code; a large one loads what was compiled before, without the compiler."""
    models = tiny.family(tmp_path, "a", "b", hidden=hidden, inner=hidden)
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(
        f"merge_method: ties\nbase_model: {models['base']}\nmodels:\n"
        + "".join(
            f"  - model: {models[name]}\n    parameters: {{weight: 0.5, density: 0.5}}\n" for name in "ab"
        )
    )
    loaded_after(MERGE, str(recipe), str(tmp_path / "first"))  # compiles what was not compiled yet
    assert loaded_after(MERGE, str(recipe), str(tmp_path / "out")) - {"numpy"} == loaded
    assert len(tiny.read(tmp_path / "out").values) == len(models["base"].values)
