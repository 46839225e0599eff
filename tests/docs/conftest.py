"""The three models of the examples, untrained, made once per session."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def example_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of examples/ with models beside the recipes."""
    folder = tmp_path_factory.mktemp("examples")
    for path in (ROOT / "examples").iterdir():
        if path.is_file():
            (folder / path.name).write_text(path.read_text())
    command = [sys.executable, str(folder / "make_models.py"), str(folder / "models"), "--steps", "1"]
    subprocess.run(command, check=True, capture_output=True)
    return folder
