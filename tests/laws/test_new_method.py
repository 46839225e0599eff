"""One new file in the package is a new method: found, listed, lawful; a wrong one is caught by the laws."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from laws import LAWS
from smelt.core.errors import MethodError
from smelt.core.method import Registry, discover
from smelt.methods._show import method_table, parameter_section

HEAD = """
from typing import Annotated
import numpy as np
from smelt.core.method import Param, method
from smelt.numerics.expr import clip, shifted, total, uniform, where
from smelt.numerics.stats import Sum, Top, keep_top
"""
MIDPOINT = """
@method(base="required", summary="Base plus the clipped mean of task vectors.", formula="base + clip(mean(d))")
def midpoint(base, models, stats, *, limit: Annotated[float, Param(doc="largest change", lo=0)] = 0.01):
    return shifted(base, clip(total(m - base for m in models) / len(models), -limit, limit))
"""
WRONG = {
    "equal models": "return base + total(m - base for m in models) + 0.001",
    "order": "return base + models[-1] * 0.5",
    "finite": "return base / abs(base)",
    "seed": "return where(uniform(stats.key(0)) < 0.5, base, models[0])",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Registry]]:
    """Writes files into a fresh package and discovers it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = tmp_path / "dropped_methods"
    folder.mkdir()
    (folder / "__init__.py").write_text("")

    def make(**files: str) -> Registry:
        for name, body in files.items():
            (folder / f"{name}.py").write_text(HEAD + body)
        return discover("dropped_methods")

    yield make
    for name in [name for name in sys.modules if name.startswith("dropped_methods")]:
        del sys.modules[name]


def test_a_new_file_is_found_documented_and_lawful(package: Callable[..., Registry]) -> None:
    registry = package(midpoint=MIDPOINT, _helper="VALUE = 1")
    assert list(registry) == ["midpoint"]
    spec = registry["midpoint"]
    assert method_table(registry.values()).count("midpoint") == 1
    assert "| `limit` | the merge | `0.01` | a number of at least 0 | largest change |" in parameter_section(
        spec
    )
    for law in LAWS.values():
        law(spec)


@pytest.mark.parametrize("law", sorted(WRONG))
def test_the_laws_catch_a_wrong_method(law: str, package: Callable[..., Registry]) -> None:
    body = f'@method(base="required", summary="Wrong.")\ndef wrong(base, models, stats):\n    {WRONG[law]}\n'
    with pytest.raises((AssertionError, RuntimeWarning)):
        LAWS[law](package(wrong=body)["wrong"])


def test_methods_imported_from_elsewhere_are_not_counted_twice(package: Callable[..., Registry]) -> None:
    registry = package(midpoint=MIDPOINT, other="from dropped_methods.midpoint import midpoint")
    assert list(registry) == ["midpoint"]


def test_two_methods_of_one_name_are_refused(package: Callable[..., Registry]) -> None:
    with pytest.raises(MethodError, match=r"'midpoint' is declared twice.*rename"):
        package(midpoint=MIDPOINT, second=MIDPOINT)
