"""The terminal chat: what is said, what a slash changes, and that Ctrl-C stops the answer and not the program."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import latent_tiny as tiny
import pytest
from rich.console import Console

from smelt.latent.chat import Chat, Conversation, line_reader
from smelt.latent.chat_commands import COMMANDS
from smelt.latent.generating import Delta, Sampling
from smelt.latent.recipe_choice import read_source
from smelt.latent.serving import Served

SMELT = str(Path(sys.executable).with_name("smelt"))


class Terminal:
    """A chat whose screen is a string."""

    def __init__(self, served: Served, **options: Any) -> None:
        self.screen = io.StringIO()
        self.talk = Conversation(
            served, served.blend, sampling=Sampling(temperature=0.0), max_tokens=16, **options
        )
        self.chat = Chat(self.talk, Console(file=self.screen, width=120))

    def __call__(self, *lines: str) -> str:
        """What these lines put on the screen."""
        waiting, start = list(lines), self.screen.tell()

        def read(prompt: str) -> str:
            if not waiting:
                raise EOFError
            return waiting.pop(0)

        from smelt.latent.request_pool import RequestPool

        self.chat._pool = RequestPool(1)
        self.chat.run(read)
        self.screen.seek(start)
        return self.screen.read()


@pytest.fixture
def terminal(served: Served) -> Terminal:
    return Terminal(served)


def test_answers(terminal: Terminal) -> None:
    screen = terminal("r:abcd>", "s:abcd>")
    assert screen.splitlines()[0] == "dcba" and screen.splitlines()[2] == "bcde"
    assert "5 tokens, " in screen
    assert terminal.talk.turns == [("r:abcd>", "dcba"), ("s:abcd>", "bcde")]


def test_the_ratio_changes_while_talking(terminal: Terminal, served: Served) -> None:
    screen = terminal("/beta 0", "s:abcd>", "/beta 1", "/again", "/ratio 0.5", "/again").splitlines()
    assert "ratio 0.0" in screen[0] and screen[1] == "ddba"
    assert "ratio 1.0" in screen[3] and screen[4] == "bcde"
    assert screen[7] == "bcde" and terminal.talk.turns == [("s:abcd>", "bcde")]
    assert served.wrapper.settings.sites[0].weights == (0.5,)  # nobody else notices


def test_layer_operator_and_scope(terminal: Terminal) -> None:
    screen = terminal("/layer 3", "/op lerp", "/scope generated", "s:abcd>", "/layer 0.5n", "/settings")
    assert "lerp at layer 3, ratio 0.5; scope generated" in screen
    assert "lerp at layer 0.5n" in screen and "blend answers; temperature 0" in screen


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/layer 9", "expected 0..4"),
        ("/layer", "0 to 4"),
        ("/beta much", "'much' is no number"),
        ("/beta", "one for each donor"),
        ("/beta 0.1 0.2", "2 weights for 1 donors"),
        ("/op slurp", "did you mean 'slerp'?"),
        ("/scope some", "unknown scope"),
        ("/lyer 3", "did you mean '/layer'?"),
        ("/donor 3", "no model 'donor-3'"),
        ("/max 0", "at least 1"),
        ("/temperature -1", "temperature=-1"),
        ("/save", "/save DIR"),
        ("/again", "nothing was asked yet"),
        ("a" * 300, "/reset starts again"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_changes(terminal: Terminal, line: str, said: str) -> None:
    before = terminal.talk.describe(), terminal.talk.sampling, terminal.talk.voice
    screen = terminal(line, "r:abcd>")
    assert f"error: {''}" in screen and said in screen and screen.splitlines()[-2] == "dcba"
    assert (terminal.talk.describe(), terminal.talk.sampling, terminal.talk.voice) == before


def test_others_answer(terminal: Terminal) -> None:
    screen = terminal("/base", "s:abcd>", "/donor", "/again", "/blend", "/again").splitlines()
    assert [screen[1], screen[4], screen[7]] == ["ddba", "bcde", "bcde"]
    assert screen[0] == "base answers now"


def test_compare(terminal: Terminal) -> None:
    screen = terminal("/compare s:abcd>", "/beta 0", "/compare").splitlines()
    assert screen[0] == "base" and screen[1] == "ddba"
    assert screen[3].startswith("blend (slerp at layer last") and screen[4] == "bcde"
    assert screen[6] == "donor" and screen[7] == "bcde"
    assert screen[14] == "ddba" and terminal.talk.turns == [("s:abcd>", "ddba")]


def test_turns_and_the_system_prompt_reach_the_model(
    terminal: Terminal, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.blend.tokenizer, "chat_template", tiny.CHAT)
    terminal("/system Be brief.", "one", "two")
    asked = terminal.talk.encode(served.blend, "three")
    text = served.blend.tokenizer.decode(list(asked))
    first, second = (answer for _, answer in terminal.talk.turns)
    assert text == (
        f"<|system|>Be brief.\n<|user|>one\n<|assistant|>{first}\n<|user|>two\n<|assistant|>{second}\n"
        "<|user|>three\n<|assistant|>"
    )
    assert "you: one" in terminal("/history")
    terminal("/reset", "/system")
    assert terminal.talk.turns == [] and terminal.talk.system == ""


def test_without_a_template_plain_text_works(
    terminal: Terminal, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.blend.tokenizer, "chat_template", None)
    screen = terminal("r:abcd>", "/plain", "r:abcd>")
    assert "no chat template; /plain sends text as it is" in screen and "dcba" in screen


def test_save(served: Served, tmp_path: Path) -> None:
    """What is saved is what was heard; the models behind it are found again from anywhere."""
    settings = served.wrapper.settings
    try:
        terminal = Terminal(served)
        terminal("/layer 3", "/op regmean", "/beta 0.25", f"/save {tmp_path / 'mine'}")
        recipe, _ = read_source(tmp_path / "mine")
        site = recipe.settings.sites[0]
        assert (site.layer, site.op) == (3, "regmean") and site.lam == pytest.approx(3.0)
        assert Path(recipe.base.path).name == "reverser"
        assert "regmean at layer 3, ratio λ 3" in terminal("/settings")
    finally:
        served.wrapper.set_sites(settings.sites, scope=settings.scope)


def test_help_names_every_command(terminal: Terminal) -> None:
    screen = terminal("/help")
    assert all(command.usage in screen for command in COMMANDS.values())


def test_lines_that_go_on(terminal: Terminal) -> None:
    terminal("r:ab\\", "cd>")
    assert terminal.talk.turns[0][0] == "r:ab\ncd>"


def test_a_model_cannot_steer_the_terminal(terminal: Terminal) -> None:
    terminal.chat._show(Delta(0, "a\x1b[31mb\x07[bold]c\x9b2J\n", 1), "blue")
    terminal.screen.seek(0)
    assert terminal.screen.read() == "a\ufffd[31mb\ufffd[bold]c\ufffd2J\n"


def test_ctrl_c_at_the_prompt_clears_the_line(terminal: Terminal) -> None:
    calls = iter([KeyboardInterrupt, "/quit"])

    def read(prompt: str) -> str:
        item = next(calls)
        if item is KeyboardInterrupt:
            raise KeyboardInterrupt
        return str(item)

    terminal.chat.run(read)
    terminal.screen.seek(0)
    assert "/quit leaves" in terminal.screen.read()


def test_an_error_while_generating_is_said(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    how = Sampling(temperature=0.0, logit_bias={3: float("nan")})
    terminal.talk.sampling = how
    assert "error: logits hold NaN" in terminal("r:abcd>", "/help")


@pytest.mark.slow
def test_piped_input(pair_dir: Path, tmp_path: Path) -> None:
    """The command with lines from a pipe: answers only, no prompt, no history file."""
    command = [SMELT, "latent", "chat", "--base", str(pair_dir / "reverser"), "--layer", "last"]
    command += ["--donor", str(pair_dir / "shifter"), "--temperature", "0"]
    done = subprocess.run(
        command,
        input="r:abcd>\n/beta 1\ns:abcd>\n",
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith("blend, base, donor; slerp at layer last") and lines[1] == "dcba"
    assert lines[4] == "bcde" and not (tmp_path / "smelt").exists()


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_not_the_program(tmp_path: Path) -> None:
    """In a real terminal, with models that take seconds for their answer."""
    import pexpect

    for seed, name in enumerate(("base", "donor")):
        model = tiny.tiny_causal(
            "llama", seed, hidden_size=256, num_hidden_layers=12, max_position_embeddings=8192
        )
        model.generation_config.eos_token_id = None
        model.save_pretrained(tmp_path / name)
        tokenizer = tiny.byte_tokenizer()
        tokenizer.model_max_length, tokenizer.eos_token = 8192, None  # it never stops by itself
        tokenizer.save_pretrained(tmp_path / name)
    command = ["latent", "chat", "--base", str(tmp_path / "base"), "--donor", str(tmp_path / "donor")]
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "TERM": "dumb"}
    child = pexpect.spawn(
        SMELT, [*command, "--max-tokens", "7000"], env=environment, encoding="utf-8", codec_errors="replace"
    )  # type: ignore[arg-type]
    try:
        child.expect_exact("blend> ", timeout=60)
        child.sendline("hello")
        child.expect(r"hello\r\n.{20,}", timeout=30)  # it speaks
        child.sendintr()
        child.expect(r"\d+ tokens, .*, stopped", timeout=20)
        child.expect_exact("blend> ", timeout=10)
        child.send("/set\t")  # completion
        child.expect_exact("/settings", timeout=10)
        child.sendline("")
        child.expect("blend answers; temperature 0.7", timeout=10)
        child.expect_exact("blend> ", timeout=10)
        child.send("\x1b[A\x1b[A")  # the line before the last
        child.expect_exact("hello", timeout=10)
        child.sendcontrol("u")
        child.sendline("/quit")
        child.expect(pexpect.EOF, timeout=20)
        child.close()
        assert child.exitstatus == 0
        assert "hello" in (tmp_path / "smelt" / "chat_history").read_text()
    finally:
        child.close(force=True)


def test_lines_from_a_pipe_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo"))
    with line_reader(None) as read:
        assert [read(""), read("")] == ["one", "two"]
        with pytest.raises(EOFError):
            read("")
