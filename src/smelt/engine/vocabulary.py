"""Whether the models of a merge speak of the same tokens: rows of embeddings are merged by position."""

from __future__ import annotations

from collections.abc import Mapping

from smelt.core.errors import Problem
from smelt.engine.members import Member, Members, read_vocabulary
from smelt.recipe import Recipe


def check_vocabularies(
    recipe: Recipe, members: Members, notes: list[str], by_position: bool = False
) -> list[Problem]:
    """Problems and notes about tokenizers that differ. Equal ones need no alignment, whatever the recipe asks."""
    known: list[tuple[Member, Mapping[str, int]]] = []
    for member in members.by_ref.values():
        if member is not None and member.folder is not None:
            vocabulary = read_vocabulary(member.folder)
            if vocabulary:
                known.append((member, vocabulary))
    problems = []
    if recipe.chat_template is not None:
        notes.append("chat_template is checked but not applied yet: the donor's template is kept")
    asked = recipe.tokenizer_source is not None or recipe.tokenizer is not None
    for other in known[1:]:
        difference = _difference(known[0], other)
        if difference and asked:
            problems.append(
                Problem(difference, "tokenizer", "equal vocabularies: aligning different ones is not built yet",
                        "use models that share a tokenizer")
            )  # fmt: skip
        elif difference and "differently" in difference and not by_position:
            problems.append(
                Problem(difference, "tokenizer", "the same number for the same token: rows are merged by position",
                        "use models that share a tokenizer, or pass --by-position if you know that the rows fit")
            )  # fmt: skip
        elif difference:
            notes.append(f"{difference}; their embedding rows are merged by position")
    if (
        asked
        and recipe.tokenizer is not None
        and (recipe.tokenizer.tokens or recipe.tokenizer.pad_to_multiple_of)
    ):
        problems.append(
            Problem("rules for single tokens and padding of the vocabulary are not built yet", "tokenizer",
                    "source alone", "leave tokens and pad_to_multiple_of out")
        )  # fmt: skip
    return problems


def _difference(first: tuple[Member, Mapping[str, int]], second: tuple[Member, Mapping[str, int]]) -> str:
    (one, a), (other, b) = first, second
    if a == b:
        return ""
    moved = [token for token, number in a.items() if b.get(token, number) != number]
    if moved:
        return f"{one.label} and {other.label} number {len(moved)} tokens differently ({moved[0]!r}, ...)"
    missing = sorted(a.keys() ^ b.keys())
    return f"{len(missing)} tokens are in only one of {one.label} and {other.label} ({missing[0]!r}, ...)"
