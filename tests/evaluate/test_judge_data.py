"""JudgeBench from local files, and exact answers inside free text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from judge_tools import environment, write_rows

from smelt.core.errors import EvaluationError
from smelt.evaluate.extract import extract_answer, last_boxed, normal_form, same_answer, score_exact
from smelt.evaluate.judgebench import load_judgebench, load_questions, questions, without_overlap
from smelt.evaluate.responses import Response

MODELS = {"gpt": "gpt-4o-2024-05-13", "claude": "claude-3-5-sonnet-20240620"}


def row(number: int, split: str, **more: object) -> dict[str, object]:
    return {
        "pair_id": f"{split}-{number}",
        "original_id": number if number % 2 else None,
        "source": ("mmlu-pro-law", "livebench-math", "livebench-reasoning", "livecodebench")[number % 4],
        "question": f"Question {number}?",
        "response_model": MODELS[split],
        "response_A": f"So it is {'ABCD'[number % 4] * 5}",
        "response_B": "So it is EEEEE",
        "label": "A>B" if number % 2 else "B>A",
        **more,
    }


ROWS = [row(i, "gpt") for i in range(6)] + [row(i, "claude") for i in range(4, 9)]


def test_rows_keep_their_label_source_and_skill(tmp_path: Path) -> None:
    items = load_judgebench(write_rows(tmp_path / "j.jsonl", ROWS))
    assert len(items) == 11 and items[1].label == "A" and items[0].label == "B"
    assert [item.skill for item in items[:4]] == ["knowledge", "math", "reasoning", "coding"]
    assert (items[0].original_id, items[1].original_id) == ("", "1")
    pair = items[1].pair
    assert (pair.id, pair.label, pair.a, pair.source) == ("gpt-1", "A", "So it is BBBBB", "livebench-math")


def test_splits_are_told_apart_by_the_answering_model(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "j.jsonl", ROWS)
    assert [len(load_judgebench(file, split)) for split in ("gpt", "claude")] == [6, 5]
    only = write_rows(tmp_path / "g.jsonl", ROWS[:6])
    with pytest.raises(EvaluationError, match="no rows of split 'claude'"):
        load_judgebench(only, "claude")
    with pytest.raises(EvaluationError, match="unknown split 'test'"):
        load_judgebench(only, "test")


def test_questions_of_the_other_split_are_left_out_on_request(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "j.jsonl", ROWS)
    claude, gpt = load_judgebench(file, "claude"), load_judgebench(file, "gpt")
    assert [item.pair_id for item in without_overlap(claude, gpt)] == ["claude-6", "claude-7", "claude-8"]
    kept = load_questions(file, "claude", exclude_overlap=True)
    assert [question.id for question in kept] == ["claude-6", "claude-7", "claude-8"]
    with pytest.raises(EvaluationError, match="no split chosen"):
        load_questions(file, exclude_overlap=True)


def test_one_question_twice_is_kept_or_taken_once(tmp_path: Path) -> None:
    twice = [row(1, "gpt"), row(1, "gpt", pair_id="again", question="Question  1?\n"), row(2, "gpt")]
    items = load_judgebench(write_rows(tmp_path / "j.jsonl", twice))
    assert [q.id for q in questions(items)] == ["gpt-1", "again", "gpt-2"]
    assert [q.id for q in questions(items, dedupe=True)] == ["gpt-1", "gpt-2"]
    assert items[0].pair.cluster == items[1].pair.cluster != items[2].pair.cluster


@pytest.mark.parametrize("form", ["parquet", "saved", "saved splits", "hub folder", "project folder", "json"])
def test_every_local_form_gives_the_same_rows(tmp_path: Path, form: str) -> None:
    import datasets

    by_split = {split: [r for r in ROWS if r["response_model"] == MODELS[split]] for split in MODELS}
    place = tmp_path / "data"
    place.mkdir()
    whole = datasets.Dataset.from_list(ROWS)
    if form == "parquet":
        place = tmp_path / "j.parquet"
        whole.to_parquet(place)
    elif form == "saved":
        whole.save_to_disk(place)
    elif form == "saved splits":
        parts = {split: datasets.Dataset.from_list(rows) for split, rows in by_split.items()}
        datasets.DatasetDict(parts).save_to_disk(place)
    elif form == "hub folder":
        for split, rows in by_split.items():
            datasets.Dataset.from_list(rows).to_parquet(place / f"{split}-00000-of-00001.parquet")
    elif form == "project folder":
        for split, rows in by_split.items():
            write_rows(place / f"dataset=judgebench,response_model={MODELS[split]}.jsonl", rows)
    else:
        place = tmp_path / "j.json"
        place.write_text(json.dumps(ROWS))
    found = load_judgebench(place, "claude")
    assert [item.pair_id for item in found] == [f"claude-{i}" for i in range(4, 9)]
    assert len(load_judgebench(place)) == 11


def test_wrong_columns_and_labels_are_named(tmp_path: Path) -> None:
    rows = [row(0, "gpt", label="A=B"), {**row(1, "gpt"), "response_A": None}]
    with pytest.raises(EvaluationError) as caught:
        load_judgebench(write_rows(tmp_path / "j.jsonl", rows))
    assert "j.jsonl:1: label 'A=B'; expected A>B or B>A" in str(caught.value)
    assert "j.jsonl:2: no text in column response_A" in str(caught.value)
    (tmp_path / "p.parquet").write_bytes(b"nothing")
    with pytest.raises(EvaluationError, match="not a parquet file"):
        load_judgebench(tmp_path / "p.parquet")
    with pytest.raises(EvaluationError, match="no data files"):
        (tmp_path / "empty").mkdir()
        load_judgebench(tmp_path / "empty")


def test_a_dataset_that_cannot_be_reached_is_one_clear_line() -> None:
    import subprocess
    import sys

    code = (
        "from smelt.core.errors import SmeltError\n"
        "from smelt.evaluate import load_judgebench\n"
        "try: load_judgebench('nobody/JudgeBench-that-is-not-here', 'gpt')\n"
        "except SmeltError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.stdout.startswith("nobody/JudgeBench-that-is-not-here [gpt]: the dataset cannot be loaded")
    assert "give the path of a local" in done.stdout and done.stdout.count("\n") == 1


def test_plain_questions_need_no_answers(tmp_path: Path) -> None:
    rows = [{"id": 7, "prompt": "P?", "source": "s", "gold": 4}, {"question": "R?"}]
    found = load_questions(write_rows(tmp_path / "q.jsonl", rows))
    assert [(q.id, q.text, q.source, q.gold) for q in found] == [("7", "P?", "s", "4"), ("1", "R?", "", None)]
    with pytest.raises(EvaluationError, match="has no splits"):
        load_questions(tmp_path / "q.jsonl", "gpt")
    bad = write_rows(tmp_path / "bad.jsonl", [{"promt": "P?"}])
    with pytest.raises(EvaluationError, match="no prompt; did you mean 'promt'"):
        load_questions(bad)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("AAAAA no wait, so KKKKK.", "K"),
        ("AAAAAA is six, HAAAAA is a word, and B is one", None),
        (r"thus \boxed{\dfrac{3}{4}} and then **bold**", r"\dfrac{3}{4}"),
        (r"first \boxed{1}, later \boxed{\text{two}}", r"\text{two}"),
        (r"never closed \boxed{1 + (2", None),
        ("**Answer:** then **no, yes, no**", "no, yes, no"),
        ("**Only a heading:**", None),
        ("nothing at all", None),
    ],
)
def test_the_last_exact_answer_is_found(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


def test_nested_braces_stay_together() -> None:
    assert last_boxed(r"\boxed{\sqrt{\frac{a}{b}}} end") == r"\sqrt{\frac{a}{b}}"


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("0.50", r"\frac{1}{2}", True),
        ("$1{,}000$", "1,000", True),
        ("1000.", "1,000", True),
        (r"\text{ Yes }", "yes", True),
        ("yes,no,  yes", "Yes, no, yes", True),
        ("1/0", "1/0", True),
        ("2", "3", False),
        ("x+1", "x+2", False),
        ("1,2,3", "123", False),
    ],
)
def test_equal_answers_are_equal_whatever_their_notation(first: str, second: str, same: bool) -> None:
    assert same_answer(first, second) is same
    assert same_answer(second, first) is same


def test_normal_form_is_stable() -> None:
    for text in ("0.50", r"\frac{1}{2}", "Yes, no", "1,000", "AAAAA"):
        assert normal_form(normal_form(text)) == normal_form(text)


def test_the_exact_answer_of_a_row_comes_from_the_right_response_only(tmp_path: Path) -> None:
    items = load_judgebench(write_rows(tmp_path / "j.jsonl", ROWS[:2]))
    assert items[1].gold == "B", "label A>B: response A is right"
    assert items[0].gold == "E", "label B>A: response B is right"
    same = load_judgebench(write_rows(tmp_path / "s.jsonl", [row(1, "gpt", response_B="also BBBBB")]))
    assert same[0].gold is None, "both state the same answer, so it cannot be why one is right"


def test_systems_are_scored_on_exact_answers() -> None:
    a = [Response("1", "p", "BBBBB"), Response("2", "p", r"\boxed{0.5}"), Response("3", "p", None)]
    b = [Response("1", "p", "CCCCC"), Response("2", "p", r"**\frac12**"), Response("3", "p", "EEEEE")]
    found = score_exact(a, b, {"1": "B", "2": "1/2", "3": "E", "4": "X"})
    assert (found.ids, found.a, found.b) == (("1", "2", "3"), (True, True, False), (False, False, True))
    assert (found.unread_a, found.unread_b) == (1, 0)
