"""``docs/serving.md`` is true: its code runs, its commands and fields exist."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import pytest
import typer.main
from serve_kit import LiveServer

from smelt.cli.latent import APP
from smelt.latent.chat_commands import COMMANDS
from smelt.latent.openai_types import REFUSED, ChatBody, CompletionBody, LatentBody

TEXT = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_client_example_runs(server: LiveServer) -> None:
    code = blocks("python")[0]
    assert "http://127.0.0.1:8000" in code
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(code.replace("http://127.0.0.1:8000", server.url), "serving.md", "exec"), {})
    assert [line.split()[0] for line in said.getvalue().splitlines()[:3]] == ["base", "blend", "donor"]
    assert "'op': 'lerp'" in said.getvalue() and "'beta': 0.8" in said.getvalue()


def test_the_body_is_accepted(server: LiveServer) -> None:
    body = json.loads(blocks("json")[0])
    with server.http() as http:
        answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["smelt"]["latent"]["sites"][0]["schedule"]["steps"] == 40


@pytest.mark.parametrize("line", [line for block in blocks("bash") for line in block.splitlines()])
def test_commands_and_their_options_exist(line: str) -> None:
    words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
    assert words[:2] == ["smelt", "latent"]
    group = typer.main.get_group(APP)
    command = group.commands[words[2]]
    real = command._elsewhere.load() if hasattr(command, "_elsewhere") else command
    known = {name for parameter in real.params for name in parameter.opts}
    assert {word for word in words[3:] if word.startswith("--")} <= known


def test_fields_and_slashes_exist() -> None:
    part = TEXT.partition("### What a request may say")[2].partition("The blend of one request")[0]
    named = set(re.findall(r"`([a-z_]+)`", part))
    known = set(ChatBody.model_fields) | set(CompletionBody.model_fields)
    assert "top_k" in named and named <= known
    table = set(
        re.findall(r"^\| `(.*?)` \|", TEXT.partition("| field |")[2].partition("An answer says")[0], re.M)
    )
    short = {word for cell in table for word in cell.split("`, `")}
    assert {word.removeprefix("latent.") for word in short} == set(LatentBody.model_fields)
    assert set(
        re.findall(r"`/([a-z_]+)[ `]", TEXT.partition("## In the terminal")[2].partition("## Over")[0])
    ) <= set(COMMANDS)
    assert "echo" in REFUSED


def test_the_picture_is_there() -> None:
    picture = Path(__file__).parents[3] / "docs" / "latent_page.png"
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size < 300_000
