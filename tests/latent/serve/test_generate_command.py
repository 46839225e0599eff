"""``smelt latent generate``: the same answers whatever the batches, the kills and the order of things."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from smelt.cli import build_app
from smelt.core.errors import LatentError, SmeltError
from smelt.evaluate.responses import join, read_responses
from smelt.latent import batch
from smelt.latent.batch import Job, answer_file, form_of, read_prompts
from smelt.latent.generating import Sampling, Task, run
from smelt.latent.serving import Blend, Served

WARM = Job(Sampling(temperature=1.2), max_tokens=8, batch=3)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {"id": f"{skill}{n}", "prompt": f"{skill}:{word}>", "source": skill}
        for n, word in enumerate(["abcd", "hg", "ddaabb", "c"])
        for skill in "rs"
    ]
    rows[3] = {"pair_id": "m", "messages": [{"role": "user", "content": "s:habe>"}]}
    rows.append({"question": "r:gfab> without an id"})
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_prompt_is_answered_in_its_order(served: Served, prompts: Path, tmp_path: Path) -> None:
    rows = read_prompts(prompts)
    done = answer_file(served, served.blend, rows, tmp_path / "out" / "a.jsonl", Job(max_tokens=8))
    answers = read_responses(tmp_path / "out" / "a.jsonl")
    assert [a.id for a in answers] == [row.id for row in rows] and len(answers) == done.done == 9
    assert answers[0].text == "dcba" and answers[0].finish_reason == "stop" and answers[0].tokens == 5
    assert answers[0].source == "r" and answers[3].id == "m" and answers[3].prompt == "s:habe>"
    assert done.tokens == sum(a.tokens or 0 for a in answers) and done.rate > 0
    assert {a.model for a in answers} == {"blend"} and len({a.recipe_hash for a in answers}) == 1


def test_batches_do_not_matter(served: Served, prompts: Path, tmp_path: Path) -> None:
    rows = read_prompts(prompts)
    files = []
    for size in (1, 4, 9):
        out = tmp_path / f"{size}.jsonl"
        answer_file(served, served.blend, rows, out, Job(WARM.sampling, 8, batch=size))
        files.append(out.read_text())
    assert files[0] == files[1] == files[2]
    seeds = {a.seed for a in read_responses(tmp_path / "1.jsonl")}
    assert len(seeds) == len(rows)
    reseeded = tmp_path / "seed.jsonl"
    answer_file(served, served.blend, rows, reseeded, Job(WARM.sampling, 8, seed=1))
    assert [a.text for a in read_responses(reseeded)] != [
        a.text for a in read_responses(tmp_path / "1.jsonl")
    ]


def test_a_row_can_be_repeated_from_its_line(served: Served, prompts: Path, tmp_path: Path) -> None:
    answer_file(served, served.blend, read_prompts(prompts), tmp_path / "a.jsonl", WARM)
    line = read_responses(tmp_path / "a.jsonl")[4]
    task = Task(
        (served.encode(served.blend, line.prompt),), 8, sampling=Sampling(temperature=1.2, seed=line.seed)
    )
    assert run(served.blend, task).answers[0].text == line.text


def test_a_killed_run_goes_on_where_it_stopped(
    served: Served, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = read_prompts(prompts)
    answer_file(served, served.blend, rows, tmp_path / "whole.jsonl", WARM)
    calls = 0

    def dying(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return run(*args)

    out = tmp_path / "cut.jsonl"
    monkeypatch.setattr(batch, "run", dying)
    with pytest.raises(KeyboardInterrupt):
        answer_file(served, served.blend, rows, out, WARM)
    with out.open("a") as file:
        file.write('{"id": "r0", "prom')  # the line that was being written
    calls = 10
    again = answer_file(served, served.blend, rows, out, WARM)
    assert (again.reused, again.done) == (6, 3)
    assert out.read_text() == (tmp_path / "whole.jsonl").read_text()
    calls = 2  # a complete file needs no model
    assert answer_file(served, served.blend, rows, out, WARM).reused == 9


def test_answers_made_otherwise_are_not_mixed_in(served: Served, prompts: Path, tmp_path: Path) -> None:
    rows, out = read_prompts(prompts), tmp_path / "a.jsonl"
    answer_file(served, served.blend, rows, out, WARM)
    before = out.read_text()
    for voice, job, blend in [
        (served.voice("base"), WARM, Blend()),
        (served.blend, WARM, Blend(beta=0.4)),
        (served.blend, Job(WARM.sampling, 9), Blend()),
        (served.blend, Job(Sampling(temperature=0.1), 8), Blend()),
    ]:
        with pytest.raises(LatentError, match=r"other models or settings.*--overwrite"):
            answer_file(served, voice, rows, out, job, blend)
    with pytest.raises(LatentError, match="answers another prompt"):
        answer_file(served, served.blend, rows[1:], out, WARM)
    assert out.read_text() == before


@pytest.mark.parametrize("text", ["some notes", "some notes\n", '{"a": 1}\n'])
def test_a_foreign_file_is_left_alone(served: Served, prompts: Path, tmp_path: Path, text: str) -> None:
    out = tmp_path / "notes.txt"
    out.write_text(text)
    with pytest.raises(LatentError, match="not an answer that smelt wrote"):
        answer_file(served, served.blend, read_prompts(prompts), out, WARM)
    assert out.read_text() == text


def test_one_run_at_a_time(served: Served, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    with out.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(LatentError, match="another run is writing"):
            answer_file(served, served.blend, read_prompts(prompts), out, WARM)


def test_prompts_that_do_not_fit(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "long", "prompt": "' + "a" * 252 + '"}\n{"id": "short", "prompt": "r:abcd>"}\n')
    rows = read_prompts(path)
    with pytest.raises(LatentError, match=r"'long'.*252 tokens and 8 more.*256 in all"):
        answer_file(served, served.blend, rows, tmp_path / "a.jsonl", Job(max_tokens=8))
    assert not (tmp_path / "a.jsonl").exists()
    answer_file(served, served.blend, rows, tmp_path / "a.jsonl", Job(max_tokens=8, skip_long=True))
    long, short = read_responses(tmp_path / "a.jsonl")
    assert (long.text, long.finish_reason, short.text) == (None, "too_long", "dcba")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no prompts"),
        ("{}\n", r":1: no prompt"),
        ('{"id": 1, "prompt": "a"}\n{"id": "1", "prompt": "b"}\n', "is also in line 1"),
        ('{"prompt": "a"}\n{"prompt": "a"}\n', "give different ids"),
        ("not json\n", "not JSON"),
        ('{"prompt": 5}\n', "unreadable prompt"),
    ],
)
def test_bad_prompt_files(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(SmeltError, match=said):
        read_prompts(tmp_path / "p.jsonl")


def test_chat_or_plain(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text goes through the template where there is one; a system prompt is a message of its own."""
    voice = served.voice("base")
    assert form_of(Job(), voice) == "chat"
    monkeypatch.setattr(voice.tokenizer, "chat_template", None)
    assert form_of(Job(), voice) == "plain"
    with pytest.raises(LatentError, match="no chat template"):
        form_of(Job(form="chat"), voice)
    monkeypatch.setattr(
        voice.tokenizer, "chat_template", "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"
    )
    row = read_prompts(_one(tmp_path))[0]
    for form, text in [("chat", "system=Be brief.;user=r:abcd>;"), ("plain", "Be brief.r:abcd>")]:
        ids = served.encode(voice, batch._written(row, Job(system="Be brief."), form))
        assert voice.tokenizer.decode(ids) == text


def _one(folder: Path) -> Path:
    (folder / "one.jsonl").write_text('{"prompt": "r:abcd>"}\n')
    return folder / "one.jsonl"


def test_base_and_blend_files_can_be_judged(pair_dir: Path, prompts: Path, tmp_path: Path) -> None:
    """The command itself, twice; its files pair up as judges want them."""
    runner, app = CliRunner(), build_app()
    models = ["--base", str(pair_dir / "reverser"), "--donor", str(pair_dir / "shifter"), "--layer", "last"]
    for by in ("base", "blend", "donor"):
        out = str(tmp_path / f"{by}.jsonl")
        command = ["latent", "generate", "--in", str(prompts), "--out", out, *models, "--by", by]
        done = runner.invoke(app, [*command, "--max-tokens", "8", "--json"])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["answered"] == 9
    pairs = join(read_responses(tmp_path / "base.jsonl"), read_responses(tmp_path / "blend.jsonl"))
    assert len(pairs) == 9 and any(pair.a != pair.b for pair in pairs)
    done = runner.invoke(app, [*command, "--max-tokens", "9"])
    assert isinstance(done.exception, LatentError) and "--overwrite" in str(done.exception)
    done = runner.invoke(app, [*command, "--max-tokens", "9", "--overwrite"])
    assert "9 answers by donor" in done.stdout and "tokens/s" in done.stdout
