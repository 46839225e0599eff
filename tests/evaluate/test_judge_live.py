"""The judge runner against a live server with a real tiny model: complete, both orders, nothing twice."""

from __future__ import annotations

import json
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from judge_server import letter_bias
from judge_tools import SCRIPT, LiveServer, answer_rows, environment, wait_for, write_rows

from smelt.core.errors import EvaluationError
from smelt.evaluate.client import Endpoint
from smelt.evaluate.journal import Journal, load_records
from smelt.evaluate.responses import Pair
from smelt.evaluate.runner import ORDERS, Judge, Limits, Progress, plan_asks, run_asks
from smelt.evaluate.session import Plan, make_judge, run

FAST = Limits(concurrency=4, timeout=30, patience=20)


def letter_judge(model: str = "tiny", **more) -> Judge:
    return make_judge(model, template="letter", extra={"logit_bias": letter_bias()}, **more)


def make_pairs(count: int, extra: str = "") -> list[Pair]:
    rows = zip(answer_rows("alpha", count), answer_rows("beta", count), strict=True)
    return [Pair(a["id"], a["prompt"] + extra, a["text"], b["text"], a["source"]) for a, b in rows]


def judge_all(pairs: list[Pair], path: Path, url: str, judge: Judge, limits: Limits = FAST) -> Progress:
    with Journal(path) as journal:
        return run_asks(plan_asks(pairs, judge), journal, Endpoint(url), limits)


def command(a: Path, b: Path, out: Path, url: str, *more: str) -> list[str]:
    fields = json.dumps({"logit_bias": letter_bias()})
    return [
        sys.executable, str(SCRIPT), "--path-a", str(a), "--path-b", str(b), "--judge-model", "tiny",
        "--out", str(out), "--base-url", url, "--template", "letter", "--request-json", fields, *more,
    ]  # fmt: skip


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_both_orders_of_every_pair_are_judged_and_a_second_run_sends_nothing(
    server: LiveServer, tmp_path: Path
) -> None:
    pairs, out, mark = make_pairs(12), tmp_path / "j.jsonl", server.mark
    first = judge_all(pairs, out, server.url, letter_judge())
    assert (first.total, first.done, first.sent, first.left) == (24, 24, 24, 0)
    records = lines_of(out)
    assert {(r["pair_id"], r["order"]) for r in records} == {(p.id, order) for p in pairs for order in ORDERS}
    assert {r["judgment"] for r in records} == {"A", "B", "C"}, (
        "the model's choices must vary for this to mean much"
    )
    assert all(r["reply"] == r["verdict"] and r["prompt_tokens"] > 500 for r in records)
    assert len(server.counts("done", mark)) == 24
    assert server.counts("key", mark).keys() == {r["key"] for r in records}, (
        "servers may know what they answered"
    )
    again = server.mark
    second = judge_all(pairs, out, server.url, letter_judge())
    assert (second.reused, second.sent) == (24, 0)
    assert server.mark == again


def test_requests_in_flight_reach_the_concurrency_and_never_pass_it(
    server: LiveServer, tmp_path: Path
) -> None:
    mark = server.mark
    judge_all(make_pairs(16, " (flight)"), tmp_path / "j.jsonl", server.url, letter_judge(), FAST)
    busy = [int(number) for event, number in server.events(mark) if event == "busy"]
    assert max(busy) == FAST.concurrency


def test_a_server_killed_and_restarted_mid_run_loses_nothing_and_repeats_nothing(
    server: LiveServer, tmp_path: Path
) -> None:
    count = 20
    a = write_rows(tmp_path / "a.jsonl", answer_rows("gamma", count))
    b = write_rows(tmp_path / "b.jsonl", answer_rows("delta", count))
    out, mark = tmp_path / "j.jsonl", server.mark
    process = subprocess.Popen(
        command(a, b, out, server.url, "--concurrency", "4", "--json"),
        stdout=subprocess.PIPE,
        env=environment(),
    )
    wait_for(lambda: sum(server.counts("done", mark).values()) >= 12, 60, process)
    server.kill()
    before, restarted = server.counts("done", mark), server.mark
    server.start()
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    report = json.loads(printed)
    assert report["complete"] and report["comparisons"][0]["by_judge"]["tiny"]["pairs"] == count
    assert 12 <= len(before) < 2 * count, "the kill must fall into the middle of the run"
    assert not before.keys() & server.counts("start", restarted).keys(), (
        "what was delivered is not asked again"
    )
    delivered, asked = server.counts("done", mark), server.counts("start", mark)
    assert set(delivered.values()) == {1} and len(asked) == 2 * count
    # only requests that hung on the dead server were sent twice
    assert sum(asked.values()) <= 2 * count + 4
    records = lines_of(out)
    assert len(records) == len({r["key"] for r in records}) == 2 * count
    assert max(r["attempts"] for r in records) > 1, "somebody must have met the outage"
    assert report["run"]["failures"].get("APIConnectionError", 0) > 0


def test_a_judge_killed_mid_run_continues_where_its_file_ends(server: LiveServer, tmp_path: Path) -> None:
    count = 20
    a = write_rows(tmp_path / "a.jsonl", answer_rows("epsilon", count))
    b = write_rows(tmp_path / "b.jsonl", answer_rows("zeta", count))
    out = tmp_path / "j.jsonl"
    call = command(a, b, out, server.url, "--concurrency", "4", "-q")
    process = subprocess.Popen(call, env=environment())
    wait_for(lambda: out.exists() and out.read_bytes().count(b"\n") >= 12, 60, process)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    with out.open("ab") as file:
        file.write(b'{"key": "0123abc", "status": "o')  # what a crash in the middle of a line leaves
    before = {r["key"] for r in lines_of_whole(out)}
    time.sleep(0.3)  # replies to the dead judge
    mark = server.mark
    assert subprocess.run(call, env=environment(), timeout=60).returncode == 0
    records = lines_of(out)
    assert len(records) == len({r["key"] for r in records}) == 2 * count
    assert before <= {r["key"] for r in records} and 12 <= len(before) < 2 * count
    assert sum(server.counts("start", mark).values()) == 2 * count - len(before), (
        "only what was missing is asked"
    )
    mark = server.mark
    assert subprocess.run(call, env=environment(), timeout=60).returncode == 0
    assert server.mark == mark, "a complete file needs no request"


def lines_of_whole(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_an_unknown_model_stops_after_one_request_and_is_recorded(server: LiveServer, tmp_path: Path) -> None:
    mark, out = server.mark, tmp_path / "j.jsonl"
    with pytest.raises(EvaluationError, match=r"NotFoundError.*no model 'gone'.*--judge-model"):
        judge_all(make_pairs(5), out, server.url, letter_judge("gone"))
    assert [event for event, _ in server.events(mark)] == ["refused"]
    (record,) = lines_of(out)
    assert (record["status"], record["error"]["type"], record["error"]["status"]) == (
        "error",
        "NotFoundError",
        404,
    )


def test_a_wrong_key_stops_after_one_request(
    server: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    mark = server.mark
    with pytest.raises(EvaluationError, match=r"AuthenticationError.*check the API key"):
        judge_all(make_pairs(5), tmp_path / "j.jsonl", server.url, letter_judge())
    assert len(server.events(mark)) == 1
    assert "wrong" not in (tmp_path / "j.jsonl").read_text().replace("the key is wrong", "")


def test_throttling_is_waited_out(server: LiveServer, tmp_path: Path) -> None:
    mark = server.mark
    limits = Limits(concurrency=12, timeout=30, patience=20, retries=50)  # the server takes six at a time
    done = judge_all(make_pairs(20, " (fast)"), tmp_path / "j.jsonl", server.url, letter_judge(), limits)
    assert done.left == 0 and done.failures["RateLimitError"] > 0
    assert set(server.counts("done", mark).values()) == {1}
    assert all(record["status"] == "ok" for record in lines_of(tmp_path / "j.jsonl"))


def test_a_refused_item_is_recorded_as_error_and_asked_again_on_resume(
    server: LiveServer, tmp_path: Path
) -> None:
    pairs = make_pairs(4)
    too_long = Pair("long", "Sum?" + "x" * 30_000, "1", "2", "rest")
    out, judge = tmp_path / "j.jsonl", letter_judge()
    progress = judge_all([*pairs, too_long], out, server.url, judge)
    assert (progress.done, progress.failed, progress.left) == (8, 2, 2)
    finished, errors = load_records(out)
    assert len(finished) == 8 and {e["error"]["type"] for e in errors.values()} == {"BadRequestError"}
    assert {error["pair_id"] for error in errors.values()} == {"long"}
    mark = server.mark
    again = judge_all([*pairs, too_long], out, server.url, judge)
    assert (again.sent, again.failed) == (2, 2) and len(server.counts("refused", mark)) == 2
    plan = Plan((judge,), out, Endpoint(server.url), FAST)
    outcomes = run({("a", "b"): [*pairs, too_long]}, plan).outcomes["a", "b"]["tiny"]
    assert [o.state for o in outcomes] == ["judged"] * 4 + ["error"], "an error is never a tie"
    assert outcomes[-1].score is None


def test_requests_that_are_all_refused_stop_the_run_early(server: LiveServer, tmp_path: Path) -> None:
    pairs = [Pair(f"l{i}", "y" * 30_000, str(i), str(i + 1)) for i in range(20)]
    mark = server.mark
    with pytest.raises(EvaluationError, match="BadRequestError: longer than 20000"):
        judge_all(pairs, tmp_path / "j.jsonl", server.url, letter_judge())
    assert len(server.counts("refused", mark)) <= 5 + 4


def test_a_server_error_of_one_request_is_retried_then_recorded(server: LiveServer, tmp_path: Path) -> None:
    broken = make_judge(
        "tiny", template="letter", extra={"logit_bias": {"999999": 1}}
    )  # no such token: status 500
    limits = Limits(concurrency=2, timeout=30, patience=0.5, retries=2)
    with pytest.raises(EvaluationError, match=r"no answer for .*InternalServerError"):
        judge_all(make_pairs(3), tmp_path / "j.jsonl", server.url, broken, limits)
    _, errors = load_records(tmp_path / "j.jsonl")
    assert {error["error"]["status"] for error in errors.values()} == {500}
    assert {error["attempts"] for error in errors.values()} <= {1, 2}


def test_an_endpoint_that_never_answers_stops_within_its_patience(tmp_path: Path) -> None:
    with socket.socket() as closed:  # bound, not listening: connections are refused
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
        start = time.monotonic()
        with pytest.raises(
            EvaluationError, match=r"no answer for .*APIConnectionError.*0 of 6 judgements are saved"
        ):
            judge_all(make_pairs(3), tmp_path / "j.jsonl", url, letter_judge(), Limits(patience=1.0))
    assert 1.0 <= time.monotonic() - start < 10


def test_a_full_disk_stops_the_run_and_the_same_call_continues(server: LiveServer, tmp_path: Path) -> None:
    pairs, out, judge = make_pairs(6), tmp_path / "j.jsonl", letter_judge()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(EvaluationError, match=r"j.jsonl: cannot write: .*free space"):
            judge_all(pairs, out, server.url, judge)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept = len(lines_of(out))
    assert 0 < kept < 12 and out.stat().st_size < 4000
    assert judge_all(pairs, out, server.url, judge).sent == 12 - kept


def test_max_requests_stops_with_whole_pairs_and_the_rest_follows(server: LiveServer, tmp_path: Path) -> None:
    pairs, out, judge = make_pairs(6), tmp_path / "j.jsonl", letter_judge()
    cut = judge_all(pairs, out, server.url, judge, Limits(concurrency=2, max_requests=4))
    assert (cut.sent, cut.done, cut.left) == (4, 4, 8)
    assert {r["pair_id"] for r in lines_of(out)} == {"q0", "q1"}
    rest = judge_all(pairs, out, server.url, judge, Limits(concurrency=2))
    assert (rest.reused, rest.sent, rest.left) == (4, 8, 0)


def test_logprob_mode_reads_the_probability_of_each_letter(server: LiveServer, tmp_path: Path) -> None:
    judge = make_judge("tiny", logprob=True, extra={"logit_bias": letter_bias("AB")})
    out = tmp_path / "j.jsonl"
    plan = Plan((judge,), out, Endpoint(server.url), FAST)
    outcomes = run({("a", "b"): make_pairs(6)}, plan).outcomes["a", "b"]["tiny"]
    records = {(r["pair_id"], r["order"]): r for r in lines_of(out)}
    for outcome in outcomes:
        one, two = (records[outcome.pair_id, order]["probability"] for order in ORDERS)
        assert outcome.score == pytest.approx((one + 1 - two) / 2)
    assert all(0 < r["probability"] < 1 and r["mass"] > 0.99 for r in records.values())
    assert all((r["probability"] > 0.5) == (r["reply"] == "A") for r in records.values())


def test_the_same_pair_under_two_ids_is_judged_once(server: LiveServer, tmp_path: Path) -> None:
    one = make_pairs(1)[0]
    twin = Pair("twin", one.question, one.a, one.b, one.source)
    plan = Plan((letter_judge(),), tmp_path / "j.jsonl", Endpoint(server.url), FAST)
    results = run({("a", "b"): [one, twin]}, plan)
    assert results.progress.sent == 2
    scores = [outcome.score for outcome in results.outcomes["a", "b"]["tiny"]]
    assert scores[0] is not None and scores[0] == scores[1]


def test_a_run_inside_a_running_event_loop_works(server: LiveServer, tmp_path: Path) -> None:
    import asyncio

    async def notebook_cell() -> Progress:
        return judge_all(make_pairs(1), tmp_path / "j.jsonl", server.url, letter_judge())

    assert asyncio.run(notebook_cell()).done == 2


def test_a_panel_asks_every_judge_and_keeps_them_apart(server: LiveServer, tmp_path: Path) -> None:
    judges = (letter_judge("tiny"), letter_judge("tiny-2"))
    plan = Plan(judges, tmp_path / "j.jsonl", Endpoint(server.url), FAST)
    results = run({("a", "b"): make_pairs(3)}, plan)
    assert results.progress.sent == 12
    assert {r["judge"] for r in lines_of(tmp_path / "j.jsonl")} == {"tiny", "tiny-2"}
    assert results.outcomes["a", "b"].keys() == {"tiny", "tiny-2"}
