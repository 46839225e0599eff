"""Response files, joining, old pickles: read safely, refused clearly."""

from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path

import pytest
from judge_tools import answer_rows, write_rows

from smelt.core.errors import EvaluationError
from smelt.evaluate.pickles import convert_pickle, load_plain_pickle
from smelt.evaluate.responses import Question, Response, join, read_responses, system_name, write_responses
from smelt.evaluate.session import load_material


def test_a_written_file_reads_back_the_same(tmp_path: Path) -> None:
    written = [
        Response("1", "Q?", "A\u2028B \ud83d", "", "m", "h", "stop", 3, 7, "s"),
        Response("2", "R?", None),
    ]
    write_responses(tmp_path / "r.jsonl", written)
    found = read_responses(tmp_path / "r.jsonl")
    assert [(one.id, one.text, one.seed, one.tokens, one.source) for one in found] == [
        ("1", "A\u2028B \ud83d", 7, 3, "s"),
        ("2", None, None, None, ""),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"], "no part of a file stays behind"


def test_other_tools_names_and_chat_prompts_are_understood(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Why?", "output": "Because.", "generator": "m"},
        {"messages": [{"role": "user", "content": "How?"}], "response": "So.", "model_recipe_hash": "abc"},
        {"prompt": [{"role": "system", "content": "Be."}, {"role": "user", "content": "Who?"}], "text": "I."},
    ]
    found = read_responses(write_rows(tmp_path / "r.json", rows))
    assert [one.prompt for one in found] == ["Why?", "How?", "system: Be.\n\nuser: Who?"]
    assert found[0].id == found[0].prompt_hash[:16] and found[1].recipe_hash == "abc"
    (tmp_path / "list.json").write_text(json.dumps(rows))
    assert read_responses(tmp_path / "list.json") == found


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", r"r.jsonl:2: not JSON: .* at column 2"),
        ("[1]", r"r.jsonl:2: a list; expected one JSON object a line"),
        ('{"id": 1, "text": "x"}', r"r.jsonl:2: no prompt"),
        ('{"id": 1, "prompt": "p", "txt": "x"}', r"r.jsonl:2: no text; did you mean 'txt'"),
        ('{"id": 1, "prompt": "p", "text": 5}', r"r.jsonl:2: text is a int"),
        ('{"id": 1, "prompt": {}, "text": "x"}', r"r.jsonl:2: unreadable prompt"),
        ('{"id": 1, "prompt": "p", "text": "x", "seed": "s"}', r"r.jsonl:2: seed is 's'"),
        ('{"id": 1, "prompt": "p", "prompt_hash": "beef", "text": "x"}', r"prompt_hash beef does not belong"),
        ('{"id": "q", "prompt": "Q?", "text": "x"}', r"id 'q' occurs 2 times"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text('{"id": "q", "prompt": "Q?", "text": "fine"}\n' + line + "\n")
    with pytest.raises(EvaluationError, match=message):
        read_responses(file)


def test_all_bad_lines_are_reported_together(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "r.jsonl", [{"id": str(i), "text": "x"} for i in range(30)])
    with pytest.raises(EvaluationError) as caught:
        read_responses(file)
    assert len(caught.value.problems) == 21 and "10 more problems" in str(caught.value)


def test_missing_empty_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no such file"):
        read_responses(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(EvaluationError, match="no responses"):
        read_responses(tmp_path / "empty.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EvaluationError, match="not UTF-8"):
        read_responses(tmp_path / "b.jsonl")


def test_join_goes_by_id_whatever_the_order(tmp_path: Path) -> None:
    a = [Response("1", "P", "x"), Response("2", "Q", "y")]
    b = [Response("2", "Q", "Y", source="s"), Response("1", "P", "X")]
    assert [(p.id, p.a, p.b, p.source) for p in join(a, b)] == [("1", "x", "X", ""), ("2", "y", "Y", "s")]


def test_join_refuses_missing_ids_and_other_prompts_all_at_once() -> None:
    a = [Response("1", "P", "x"), Response("2", "Q", "y"), Response("3", "R", "z")]
    b = [Response("2", "Q changed", "Y"), Response("4", "S", "w")]
    with pytest.raises(EvaluationError) as caught:
        join(a, b, ("left", "right"))
    text = str(caught.value)
    assert "right: 2 ids of left are missing: '1', '3'" in text
    assert "left: 1 ids of right are missing: '4'" in text
    assert "the prompts of id '2' differ: 'Q' and 'Q changed'" in text


def test_systems_are_called_after_their_model_or_their_file() -> None:
    assert system_name([Response("1", "p", "t", model="m")], "x/file.jsonl") == "m"
    assert system_name([Response("1", "p", "t")], "x/file.jsonl") == "file"


def questions(count: int) -> list[Question]:
    return [Question(row["id"], row["prompt"], row["source"]) for row in answer_rows("x", count)]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_old_lists_are_read_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    items = ["four", None, "s\u00e4chs"]
    (tmp_path / "r.pkl").write_bytes(pickle.dumps(items, protocol))
    assert load_plain_pickle(tmp_path / "r.pkl") == items
    found = read_responses(tmp_path / "r.pkl", questions(3))
    assert [(one.id, one.text, one.source) for one in found] == [
        ("q0", "four", "sums"),
        ("q1", None, "more"),
        ("q2", "s\u00e4chs", "rest"),
    ]


class Evil:
    """Unpickled by the standard library, this makes a directory."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "owned"
    data = pickle.dumps(["fine", Evil(str(target))], protocol)
    (tmp_path / "evil.pkl").write_bytes(data)
    with pytest.raises(EvaluationError, match=r"instruction (GLOBAL|STACK_GLOBAL) \(.*mkdir"):
        load_plain_pickle(tmp_path / "evil.pkl")
    assert not target.exists()
    pickle.loads(data)
    assert target.exists(), "the file was harmless, so this test proved nothing"


def test_the_unpickler_itself_refuses_what_the_scan_would_let_through() -> None:
    from smelt.evaluate.pickles import PlainUnpickler

    with pytest.raises(pickle.UnpicklingError, match="asks to import builtins"):
        PlainUnpickler(io.BytesIO(pickle.dumps(print))).load()
    with pytest.raises(pickle.UnpicklingError, match="outside the file"):
        PlainUnpickler(io.BytesIO(b"Pname\n.")).load()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps(["x"])[:-4], "not a complete pickle"),
        (b"hello", "not a complete pickle|instruction"),
        (pickle.dumps("text"), "the pickle holds a str"),
        (pickle.dumps([["nested"]]), "item 0 holds a list"),
        (pickle.dumps([b"bytes"]), "instruction|bytes"),
        (pickle.dumps([("t",)]), "instruction TUPLE1"),
        (b"]r\xff\xff\xff\x7f.", "asks for memo slot 2147483647"),
    ],
)
def test_anything_but_plain_answers_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "r.pkl").write_bytes(data)
    with pytest.raises(EvaluationError, match=message):
        load_plain_pickle(tmp_path / "r.pkl")


def test_a_list_of_the_wrong_length_or_without_questions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.pkl").write_bytes(pickle.dumps(["a", "b"]))
    with pytest.raises(EvaluationError, match="2 answers; expected 3, one for every question"):
        read_responses(tmp_path / "r.pkl", questions(3))
    with pytest.raises(EvaluationError, match="holds no prompts"):
        read_responses(tmp_path / "r.pkl")


def test_the_converter_writes_a_file_that_joins(tmp_path: Path) -> None:
    (tmp_path / "slerp.pkl").write_bytes(pickle.dumps(["a", {"text": "b", "n": 1}, None]))
    convert_pickle(tmp_path / "slerp.pkl", questions(3), tmp_path / "slerp.jsonl")
    found = read_responses(tmp_path / "slerp.jsonl")
    assert [(one.id, one.text, one.model) for one in found] == [
        ("q0", "a", "slerp"),
        ("q1", "b", "slerp"),
        ("q2", None, "slerp"),
    ]
    assert len(join(found, found)) == 3


def test_answers_take_their_source_from_the_questions_and_must_belong_to_them(tmp_path: Path) -> None:
    plain = [{"id": row["id"], "text": row["text"]} for row in answer_rows("alpha", 4)]
    file = write_rows(tmp_path / "a.jsonl", plain)
    known = write_rows(tmp_path / "q.jsonl", [{**row, "gold": "4"} for row in answer_rows("x", 4)])
    material = load_material([("one", file), ("two", file)], known)
    assert [pair.source for pair in material.pairs("one", "two")] == ["sums", "more", "rest", "sums"]
    assert material.gold == dict.fromkeys(("q0", "q1", "q2", "q3"), "4")
    short = write_rows(tmp_path / "short.jsonl", answer_rows("x", 2))
    with pytest.raises(EvaluationError, match=r"a.jsonl:\d: no prompt"):
        load_material([(None, file)], short)
    full = write_rows(tmp_path / "full.jsonl", answer_rows("x", 4))
    with pytest.raises(EvaluationError, match="id 'q2' is no question"):
        load_material([(None, full)], short)
    other = write_rows(tmp_path / "other.jsonl", [row | {"prompt": "else"} for row in answer_rows("x", 4)])
    with pytest.raises(EvaluationError, match="id 'q0' answers another prompt"):
        load_material([(None, full)], other)


def test_two_files_of_one_model_are_told_apart_by_their_names(tmp_path: Path) -> None:
    a = write_rows(tmp_path / "first.jsonl", answer_rows("m", 2))
    b = write_rows(tmp_path / "second.jsonl", answer_rows("m", 2))
    assert load_material([(None, a), (None, b)]).systems == ("m", "second")
    with pytest.raises(EvaluationError, match="two systems are called 'x'"):
        load_material([("x", a), ("x", b)])
