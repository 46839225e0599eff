"""Fixtures of the serving tests: the trained pair behind a chat template, loaded once, and live servers over it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import latent_tiny as tiny
import pytest
from serve_kit import LAST_MESSAGE, LiveServer

from smelt.latent import generating
from smelt.latent.generating import Delta, Row
from smelt.latent.recipe_choice import quick_recipe
from smelt.latent.serving import Served, load, quiet_loading


@pytest.fixture(scope="session")
def pair_dir(skilled_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``reverser`` and ``shifter``: the trained models, with a chat template that is the last message itself."""
    folder = tmp_path_factory.mktemp("tiny", numbered=False)
    tokenizer = tiny.byte_tokenizer()
    tokenizer.chat_template = LAST_MESSAGE
    for name, title in (("r", "reverser"), ("s", "shifter")):
        shutil.copytree(skilled_dir / name, folder / title)
        tokenizer.save_pretrained(folder / title)
    return folder


@pytest.fixture(scope="session")
def served(pair_dir: Path) -> Served:
    """Base reverses, donor shifts; slerp after the last layer, where the blend can do both."""
    recipe = quick_recipe(str(pair_dir / "reverser"), [str(pair_dir / "shifter")], layer="last")
    with quiet_loading():
        return load(recipe)


@pytest.fixture(scope="session")
def merged_dir(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The blend saved as a model directory."""
    folder = tmp_path_factory.mktemp("merged") / "blend"
    served.wrapper.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def server(served: Served) -> Iterator[LiveServer]:
    """A server over the pair, with three workers."""
    with LiveServer(served, workers=3) as live:
        yield live


@pytest.fixture
def client(server: LiveServer) -> Iterator[Any]:
    """OpenAI's own client, pointed at the server."""
    with server.openai() as one:
        yield one


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every token takes 20 ms; the list says how many there were."""
    tokens: list[int] = []
    push = Row.push

    def slowly(self: Row, *args: Any) -> Delta:
        time.sleep(0.02)
        tokens.append(1)
        return push(self, *args)

    monkeypatch.setattr(generating.Row, "push", slowly)
    return tokens
