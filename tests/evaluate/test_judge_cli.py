"""The commands as a user meets them: reports, cost guard, exit codes, errors without tracebacks."""

from __future__ import annotations

import json
import pickle
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from judge_server import letter_bias
from judge_tools import SCRIPT, LiveServer, answer_rows, environment, wait_for, write_rows
from test_judge_data import ROWS
from typer.testing import CliRunner, Result

from smelt.core.errors import EvaluationError
from smelt.evaluate.judge_cli import INCOMPLETE, JUDGE_APP

LETTER = ["--template", "letter", "--request-json", json.dumps({"logit_bias": letter_bias()})]
LETTER += ["--concurrency", "4"]  # the server takes six at a time


def call(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(JUDGE_APP, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def judge_words(server: LiveServer, a: Path, b: Path, out: Path, *more: object) -> list[object]:
    common = ["--judge-model", "tiny", "--base-url", server.url, "--out", out, *LETTER]
    return ["judge", "--path-a", a, "--path-b", b, *common, *more]


def bench_words(server: LiveServer, folder: Path, *more: object) -> list[object]:
    data = write_rows(folder / "judgebench.jsonl", ROWS)
    common = ["--judge-model", "tiny", "--base-url", server.url, "--out", folder / "bench.jsonl", *LETTER]
    return ["judge-bench", "--data", data, *common, *more]


def test_a_report_shows_everything_and_that_the_judge_is_unmeasured(
    server: LiveServer, answers: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out" / "ab.jsonl"
    result = call(*judge_words(server, *answers, out))
    page = (tmp_path / "out" / "ab.report.md").read_text()
    assert page.strip() == result.stdout.strip()
    for part in (
        "# alpha against beta", "**not measured** (run `smelt latent judge-bench --judge-model tiny`)",
        "**win rate**", "n = 12", "at equal length", "sign test p", "invalid", "chose the first shown",
        "same verdict in both orders", "smallest effect", "| sums | 4 |", "p (Holm)", "shortened for the judge | 0 of 24 |",
        "prefers, not which one is right",
    ):  # fmt: skip
        assert part in page, part
    report = json.loads((tmp_path / "out" / "ab.report.json").read_text())
    found = report["comparisons"][0]["by_judge"]["tiny"]
    assert (
        found["pairs"] == 12
        and found["win_rate"]["low"] < found["win_rate"]["value"] < found["win_rate"]["high"]
    )
    assert report["run"]["sent"] == 24 and report["judges"][0]["judge_bench"] is None
    again = json.loads(call(*judge_words(server, *answers, out), "--json").stdout)
    assert again["run"]["sent"] == 0 and again["comparisons"] == report["comparisons"]


def test_judge_bench_stands_beside_the_comparison(
    server: LiveServer, answers: tuple[Path, Path], tmp_path: Path
) -> None:
    bench = json.loads(call(*bench_words(server, tmp_path, "--split", "gpt", "--json")).stdout)
    assert bench["kind"] == "judge-bench" and bench["result"]["pairs"] == 6
    result = bench["result"]
    assert result["right"] + result["wrong"] + result["undecided"] == 6
    page = (tmp_path / "bench.report.md").read_text()
    assert "# tiny on JudgeBench (gpt)" in page and "| knowledge | 2 |" in page
    words = judge_words(
        server, *answers, tmp_path / "ab.jsonl", "--bench-report", tmp_path / "bench.report.json"
    )
    shown = call(*words).stdout
    value = 100 * result["accuracy"]["value"]
    assert f"Accuracy of tiny on JudgeBench (gpt): **{value:.1f} %" in shown and "not measured" not in shown
    report = json.loads((tmp_path / "ab.report.json").read_text())
    assert report["judges"][0]["judge_bench"]["result"]["accuracy"] == result["accuracy"]


def test_a_bench_report_of_another_judge_or_template_does_not_pass_unseen(
    server: LiveServer, answers: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "bench.report.json"
    call(*bench_words(server, tmp_path, "-q"))
    report = json.loads(path.read_text())
    report["settings"]["judge"] = "tinny"
    path.write_text(json.dumps(report))
    words = judge_words(server, *answers, tmp_path / "ab.jsonl", "--bench-report", path)
    with pytest.raises(
        EvaluationError, match="about the judge 'tinny', which is not used here; did you mean 'tiny'"
    ):
        call(*words)
    report["settings"] |= {"judge": "tiny", "template": "arena", "template_hash": "other"}
    report["result"]["accuracy"] |= {"value": 0.123, "low": 0.05, "high": 0.25}
    path.write_text(json.dumps(report))
    assert "**12.3 % [5.0, 25.0]**" in call(*words).stdout
    assert "measured with template arena, not the one used here" in call(*words).stdout
    with pytest.raises(EvaluationError, match="not a judge-bench report"):
        call(*words[:-1], tmp_path / "ab.report.json")


def test_a_dry_run_sends_nothing_writes_nothing_and_counts_rightly(
    server: LiveServer, answers: tuple[Path, Path], tmp_path: Path
) -> None:
    out, mark = tmp_path / "ab.jsonl", server.mark
    words = [*judge_words(server, *answers, out), "--dry-run"]
    shown = call(*words, "--price-in", 2, "--price-out", 5).stdout
    assert "requests to send  24" in shown and "about" in shown and "price" in shown
    cost = json.loads(call(*words, "--json").stdout)
    assert (cost["judgements"], cost["requests"], cost["completion_tokens_at_most"]) == (24, 24, 24)
    assert server.mark == mark and not out.exists()
    call(*judge_words(server, *answers, out, "--max-requests", 6, "-q"), code=INCOMPLETE)
    before = out.read_bytes()
    later = json.loads(call(*words, "--json").stdout)
    assert (later["in_file"], later["requests"]) == (6, 18) and out.read_bytes() == before


def test_a_cut_run_says_so_leaves_with_3_and_is_finished_by_the_same_command(
    server: LiveServer, answers: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "ab.jsonl"
    cut = call(*judge_words(server, *answers, out, "--max-requests", 8), code=INCOMPLETE)
    assert "16 of 24 judgements are missing" in cut.stderr and "**Not complete**" in cut.stdout
    report = json.loads((tmp_path / "ab.report.json").read_text())
    assert report["complete"] is False
    assert report["comparisons"][0]["by_judge"]["tiny"]["states"] == {"judged": 4, "waiting": 8}
    whole = json.loads(call(*judge_words(server, *answers, out), "--json").stdout)
    assert whole["complete"] is True and whole["run"]["sent"] == 16


def test_several_systems_are_rated_together(server: LiveServer, tmp_path: Path) -> None:
    files = {
        name: write_rows(tmp_path / f"{name}.jsonl", answer_rows(name, 6)) for name in ("one", "two", "three")
    }
    words = [word for name, file in files.items() for word in ("--system", f"{name}={file}")]
    out = tmp_path / "all.jsonl"
    result = call("compare", *words, "--judge-model", "tiny", "--base-url", server.url, "--out", out, *LETTER)
    assert "rating (logits)" in result.stdout and "Being shown first is worth" in result.stdout
    report = json.loads((tmp_path / "all.report.json").read_text())
    assert len(report["comparisons"]) == 3 and report["run"]["total"] <= 36
    ratings = report["ratings"]["tiny"]
    assert ratings["systems"] == ["one", "three", "two"]
    assert sum(one["value"] for one in ratings["rating"]) == pytest.approx(0, abs=1e-9)
    with pytest.raises(EvaluationError, match="1 system; expected two or more"):
        call("compare", *words[:2], "--judge-model", "tiny")


def test_a_panel_shows_each_judge_and_the_vote(
    server: LiveServer, answers: tuple[Path, Path], tmp_path: Path
) -> None:
    words = judge_words(server, *answers, tmp_path / "ab.jsonl", "--judge-model", "tiny-2")
    page = call(*words).stdout
    for part in (
        "## Judge tiny,",
        "## Judge tiny-2,",
        "## Panel: alpha against beta",
        "**majority**",
        "kappa",
    ):
        assert part in page
    report = json.loads((tmp_path / "ab.report.json").read_text())
    (same,) = report["panels"][0]["panel"]["agreement"]
    assert same["judges"] == ["tiny", "tiny-2"] and same["same"]["n"] == 12
    assert report["run"]["sent"] == 48


def test_exact_answers_are_scored_beside_the_judge(server: LiveServer, tmp_path: Path) -> None:
    rows = [{"id": f"q{i}", "prompt": f"Q{i}?", "gold": "1/2"} for i in range(4)]
    questions = write_rows(tmp_path / "q.jsonl", rows)
    texts = {"a": r"\boxed{0.5}", "b": "**0.7**"}
    files = [
        write_rows(tmp_path / f"{name}.jsonl", [{**row, "text": f"{text} {row['id']}"} for row in rows])
        for name, text in texts.items()
    ]
    words = judge_words(server, *files, tmp_path / "ab.jsonl", "--questions", questions)
    page = call(*words).stdout
    assert "## Exact answers" in page
    (exact,) = json.loads((tmp_path / "ab.report.json").read_text())["exact"]
    found = exact["result"]
    assert (found["accuracy_a"]["value"], found["accuracy_b"]["value"], found["only_a"]) == (1.0, 0.0, 4)


def test_the_script_judges_old_pickles_with_its_old_flags(server: LiveServer, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "judgebench.jsonl", ROWS)
    for name in ("a", "b"):
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps([f"{name} {i}" for i in range(4)] + [None]))
    words = [
        "--path-a", "a.pkl", "--path-b", "b.pkl", "--judge-model", "tiny",
        "--out", "results/comparison.jsonl",
        "--reverse-order", "--questions", str(data), "--split", "claude", "--base-url", server.url, *LETTER,
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "# a against b" in done.stdout and "4 judged, 1 unanswered" in done.stdout
    lines = (tmp_path / "results" / "comparison.jsonl").read_text().splitlines()
    assert {(r["order"], r["pair_id"]) for r in map(json.loads, lines)} == {
        (order, f"claude-{i}") for order in ("A_first", "B_first") for i in range(4, 8)
    }
    assert {r["judgment"] for r in map(json.loads, lines)} <= {"A", "B", "C"}


def test_questions_of_the_other_split_can_be_left_out(server: LiveServer, tmp_path: Path) -> None:
    found = json.loads(call(*bench_words(server, tmp_path, "--split", "claude", "--json")).stdout)
    assert found["result"]["pairs"] == 5
    words = bench_words(server, tmp_path, "--split", "claude", "--exclude-overlap", "--json")
    assert json.loads(call(*words).stdout)["result"]["pairs"] == 3
    data = tmp_path / "judgebench.jsonl"
    rows = [{"id": row["pair_id"], "text": "x"} for row in ROWS[6:]]
    a = write_rows(tmp_path / "a.jsonl", rows)
    b = write_rows(tmp_path / "b.jsonl", [{**row, "text": "y"} for row in rows])
    more = ["--questions", data, "--split", "claude", "--exclude-overlap", "--json"]
    report = json.loads(call(*judge_words(server, a, b, tmp_path / "ab.jsonl", *more)).stdout)
    assert report["comparisons"][0]["by_judge"]["tiny"]["pairs"] == 3


def test_pickles_are_converted(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "judgebench.jsonl", ROWS)
    (tmp_path / "old.pkl").write_bytes(pickle.dumps(["x"] * 4 + [None]))
    words = ["convert-responses", tmp_path / "old.pkl", tmp_path / "new.jsonl", "--questions", data]
    assert "5 answers written" in call(*words, "--split", "claude").stdout
    rows = [json.loads(line) for line in (tmp_path / "new.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"claude-{i}" for i in range(4, 9)]
    assert rows[0]["source"] == "mmlu-pro-law" and rows[-1]["text"] is None


def test_planning_answers_in_one_line() -> None:
    assert call("judge-plan", "--effect", 0.05).stdout == "785 questions\n"
    assert call("judge-plan", "--questions", 270, "--sd", 0.32).stdout == "5.5 points\n"
    with pytest.raises(EvaluationError, match="one of --effect and --questions"):
        call("judge-plan")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--path-a", "nowhere.jsonl"], "error: nowhere.jsonl: no such file"),
        (["--template", "pairwize"], "did you mean 'pairwise'"),
        (["--request-json", "{"], "--request-json: not JSON"),
        (["--split", "gpt"], "a split without questions; give --questions"),
        (["--verdict", "logprob", "--template", "arena"], "use --template choice"),
        (["--scoring", "graded"], "graded scoring with template 'letter'"),
        (
            ["--base-url", "https://judge.example/v1", "--api-key-env", "NO_SUCH_KEY"],
            "NO_SUCH_KEY is not set",
        ),
    ],
)
def test_errors_are_one_line_with_advice_and_exit_code_2(
    server: LiveServer,
    answers: tuple[Path, Path],
    tmp_path: Path,
    more: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = judge_words(server, *answers, tmp_path / "ab.jsonl")[1:]
    monkeypatch.setattr(sys, "argv", ["judgebench_eval.py", *map(str, words), *more])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and message in said
    assert said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "ab.jsonl").exists() and not (tmp_path / "ab.report.json").exists()


def test_an_interrupt_keeps_what_was_judged(server: LiveServer, tmp_path: Path) -> None:
    a = write_rows(tmp_path / "a.jsonl", answer_rows("eta", 20))
    b = write_rows(tmp_path / "b.jsonl", answer_rows("theta", 20))
    out = tmp_path / "ab.jsonl"
    words = judge_words(server, a, b, out, "--concurrency", 2)[1:]
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, words)], env=environment(), stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: out.exists() and out.read_bytes().count(b"\n") >= 4, 60, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in said, said
    kept = [json.loads(line)["key"] for line in out.read_text().splitlines()]
    assert 4 <= len(set(kept)) == len(kept) < 40


def test_importing_the_room_and_its_commands_loads_nothing_heavy() -> None:
    code = (
        "import sys, smelt.evaluate, smelt.evaluate.judge_cli\n"
        "heavy = {'torch', 'numpy', 'openai', 'httpx', 'httpx2', 'tokenizers', 'datasets', 'transformers'}\n"
        "print(sorted(heavy & sys.modules.keys()))\n"
        "from smelt.evaluate import *\n"
        "print(wilson(1, 2).value, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "0.5 False"]


def test_every_public_name_exists() -> None:
    import smelt.evaluate as room

    assert all(callable(getattr(room, name)) or name == "TEMPLATES" for name in room.__all__)
    with pytest.raises(AttributeError, match="no attribute 'wilsen'"):
        room.wilsen
