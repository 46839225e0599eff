"""Do base and donors mean the same by a token id? Compared before anything is mixed."""

from __future__ import annotations

import warnings
from typing import Any

from smelt.core.errors import LatentError

SPECIAL = ("bos_token_id", "eos_token_id", "unk_token_id")


def check_tokenizers(base: Any, donor: Any, index: int) -> None:
    """Refuse donors whose vocabulary or special ids differ on ids both know; warn about another chat
    template."""
    if base is None or donor is None or base is donor:
        return
    where = f"donor {index}"
    mine, theirs = base.get_vocab(), donor.get_vocab()
    if mine != theirs:
        _check_shared_ids(mine, theirs, where)
    for name in SPECIAL:
        left, right = getattr(base, name, None), getattr(donor, name, None)
        if left is not None and right is not None and left != right:
            raise LatentError(
                f"{name} is {right}",
                where=where,
                expected=f"the base's {left}",
                fix="both get the same ids; if the donor was trained with the base's tokenizer, give it that",
            )
    left, right = getattr(base, "chat_template", None), getattr(donor, "chat_template", None)
    if left and right and left != right:
        warnings.warn(f"{where} has another chat template; prompts are written with the base's", stacklevel=3)


def _check_shared_ids(mine: dict[str, int], theirs: dict[str, int], where: str) -> None:
    """One may know more tokens than the other; what both use must agree."""
    back = {number: token for token, number in theirs.items()}
    wrong = [
        (token, number, back[number]) for token, number in mine.items() if back.get(number, token) != token
    ]
    if wrong:
        token, number, other = min(wrong, key=lambda item: item[1])
        raise LatentError(
            f"{len(wrong)} token ids mean something else, the first is {number}: {other!r}",
            where=where,
            expected=f"the base's {token!r}",
            fix="latent merging needs one vocabulary; merge the tokenizers first",
        )
    missing = len(mine.keys() - theirs.keys())
    if missing > len(mine) // 2:
        raise LatentError(
            f"{missing} of the base's {len(mine)} tokens are unknown",
            where=where,
            expected="the same vocabulary",
        )


def check_vocab_rows(base: Any, donor: Any, tokenizer: Any, index: int) -> None:
    """The donor's embedding must have a row for every id that can come up; padding rows do not count."""
    rows = int(donor.get_input_embeddings().weight.shape[0])
    needed = int(base.get_input_embeddings().weight.shape[0])
    if tokenizer is not None:
        needed = min(needed, max(tokenizer.get_vocab().values(), default=0) + 1)
    if rows < needed:
        raise LatentError(
            f"an embedding of {rows} rows",
            where=f"donor {index}",
            expected=f"at least {needed}, the ids the base knows",
            fix="" if tokenizer is not None else "pass tokenizer= if the base's further rows are padding",
        )
