"""Old pickled response lists, read without running anything: only lists, dicts, strings, numbers and None."""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from smelt.core.errors import EvaluationError
from smelt.evaluate.responses import Question, Response, write_responses

#: the opcodes that can build plain data; every other one imports, calls or refers outside the file
PLAIN_OPCODES = frozenset(
    word
    for line in (
        "PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE MEMOIZE",
        "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT",
        "STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8",
        "EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS",
        "PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET",
    )
    for word in line.split()
)
SCALARS = (str, int, float, type(None))


class PlainUnpickler(pickle.Unpickler):
    """An unpickler that cannot reach any class or function."""

    def find_class(self, module: str, name: str) -> NoReturn:
        """Refuse every import a pickle asks for."""
        raise pickle.UnpicklingError(f"asks to import {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        """Refuse references to objects outside the file."""
        raise pickle.UnpicklingError("refers to an object outside the file")


def load_plain_pickle(path: str | Path) -> list[Any]:
    """The list in a pickle file; anything but plain data is refused before a byte of it is executed."""
    path = Path(path)
    if not path.is_file():
        raise EvaluationError("no such file", where=str(path), fix="check the path")
    data = path.read_bytes()
    _scan(data, path)
    try:
        value = PlainUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise EvaluationError(f"damaged pickle: {error}", where=str(path)) from None
    _check(value, path)
    return value


def _scan(data: bytes, path: Path) -> None:
    recent = ("", "")
    try:
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name not in PLAIN_OPCODES:
                wants = argument if argument is not None else ".".join(recent)
                raise EvaluationError(
                    f"byte {position} holds the instruction {opcode.name} ({wants!s:.80})",
                    where=str(path),
                    expected="a pickled list of strings; such an instruction can run any program",
                    fix="do not load this file; write the answers again as JSONL",
                )
            if "PUT" in opcode.name and int(argument or 0) > len(
                data
            ):  # would reserve memory for that many slots
                raise EvaluationError(f"byte {position} asks for memo slot {argument}", where=str(path))
            if isinstance(argument, str):
                recent = (recent[1], argument)
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise EvaluationError(
            f"not a complete pickle: {error}", where=str(path), fix="the file is cut or is no pickle"
        ) from None


def _check(value: Any, path: Path) -> None:
    expected = "a list of strings (or None, or flat dicts)"
    if not isinstance(value, list):
        raise EvaluationError(
            f"the pickle holds a {type(value).__name__}", where=str(path), expected=expected
        )
    for index, item in enumerate(value):
        flat = [*item.keys(), *item.values()] if isinstance(item, dict) else [item]
        bad = next((part for part in flat if not isinstance(part, SCALARS)), None)
        if bad is not None:
            what = f"item {index} holds a {type(bad).__name__}"
            raise EvaluationError(what, where=str(path), expected=expected)


def responses_from_pickle(
    path: str | Path, questions: Sequence[Question] | None, *, model: str = ""
) -> list[Response]:
    """Answers of an old list, known by position only: it must be as long as the list of questions."""
    items = load_plain_pickle(path)
    if not questions:
        raise EvaluationError(
            "a pickled list holds no prompts",
            where=str(path),
            fix="give the file of questions it answers, in order",
        )
    if len(items) != len(questions):
        raise EvaluationError(
            f"{len(items)} answers", where=str(path), expected=f"{len(questions)}, one for every question"
        )
    return [
        Response(
            id=question.id,
            prompt=question.text,
            text=_text(item, index, path),
            model=model,
            source=question.source,
        )
        for index, (question, item) in enumerate(zip(questions, items, strict=True))
    ]


def _text(item: Any, index: int, path: str | Path) -> str | None:
    value = item
    if isinstance(item, dict):
        value = next((item[key] for key in ("text", "response", "output") if key in item), item)
    if value is None or isinstance(value, str):
        return value
    raise EvaluationError(f"item {index} has no text", where=str(path), expected="a string or None")


def convert_pickle(
    path: str | Path, questions: Sequence[Question], out: str | Path, *, model: str = ""
) -> list[Response]:
    """Turn an old pickled list into a JSONL response file with ids and prompts."""
    responses = responses_from_pickle(path, questions, model=model or Path(path).stem)
    write_responses(out, responses)
    return responses
