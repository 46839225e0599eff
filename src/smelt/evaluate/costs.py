"""What a run would send, before it does: requests, tokens, money, and what so many questions can show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from smelt.core.errors import EvaluationError
from smelt.evaluate.runner import Ask


@dataclass(frozen=True, slots=True)
class Cost:
    """A run's size. Prompt tokens are counted if a tokenizer was given, else estimated from bytes."""

    judgements: int
    in_file: int
    requests: int
    prompt_tokens: int
    completion_tokens_at_most: int
    exact: bool
    price: float | None = None


def bytes_per_four(text: str) -> int:
    """A rough token count, for want of the judge's tokenizer."""
    return -(-len(text.encode("utf-8", "replace")) // 4)


def tokenizer_counter(path: str | Path) -> Callable[[str], int]:
    """A token counter from a ``tokenizer.json``, or a folder that holds one."""
    from tokenizers import Tokenizer

    file = Path(path)
    file = file / "tokenizer.json" if file.is_dir() else file
    if not file.is_file():
        raise EvaluationError("no tokenizer.json", where=str(path), fix="give the file, or a model's folder")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise EvaluationError(f"not a tokenizer: {error}", where=str(file)) from None
    return lambda text: len(tokenizer.encode(text).ids)


def estimate_cost(
    asks: Sequence[Ask],
    waiting: Sequence[Ask],
    *,
    count: Callable[[str], int] = bytes_per_four,
    price_in: float | None = None,
    price_out: float | None = None,
) -> Cost:
    """Count what is still to be sent. Prices are per million tokens."""
    prompt = sum(count(message["content"]) for ask in waiting for message in ask.messages())
    completion = sum(ask.judge.params.max_tokens for ask in waiting)
    price = None
    if price_in is not None or price_out is not None:
        price = (prompt * (price_in or 0.0) + completion * (price_out or 0.0)) / 1e6
    total = len({ask.key for ask in asks})
    return Cost(
        judgements=total,
        in_file=total - len(waiting),
        requests=len(waiting),
        prompt_tokens=prompt,
        completion_tokens_at_most=completion,
        exact=count is not bytes_per_four,
        price=price,
    )
