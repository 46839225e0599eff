"""Tokens to text while they arrive: whole characters only, stop strings cut out, each token's own bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

UNKNOWN = "\ufffd"  # what decoders print for bytes that are no character (yet)
WINDOW = 48  # tokens decoded together; older ones can no longer change the text
OVERLAP = 8  # tokens kept when the window moves on
LONGEST = 256  # a window that never ends in a character moves on all the same
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TextStream:
    """Text of a growing list of tokens, without ever showing half a character.

    The pieces joined, with :meth:`flush`, are what decoding all tokens at once gives.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._sent = 0  # characters of the window's text already given out

    def push(self, token: int) -> str:
        """The text that is certain now and was not before."""
        self._window.append(token)
        text = self._decode()
        piece = text.rstrip(UNKNOWN)[self._sent :]
        self._sent += len(piece)
        if len(self._window) >= LONGEST and self._sent < len(text):
            piece += text[self._sent :]
            self._sent = len(text)
        if len(self._window) >= WINDOW and self._sent >= len(text):
            self._move_on(text)
        return piece

    def _move_on(self, text: str) -> None:
        """Forget old tokens, up to a place where a character begins: half a one would spoil the rest."""
        for kept in range(OVERLAP, 2 * OVERLAP):
            tail = self._decode(kept)
            if UNKNOWN not in tail and text.endswith(tail):
                self._window, self._sent = self._window[-kept:], len(tail)
                return
        if len(self._window) >= LONGEST:
            self._sent = len(self._decode(OVERLAP))
            self._window = self._window[-OVERLAP:]

    def flush(self) -> str:
        """What is left when no more tokens come: bytes that never became a character."""
        piece = self._decode()[self._sent :]
        self._sent += len(piece)
        return piece

    def _decode(self, last: int = 0) -> str:
        return self._tokenizer.decode(
            self._window[-last:], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


class StopCutter:
    """Lets text through up to the first stop string, holding back what may be the beginning of one.

    >>> cutter = StopCutter(["END"])
    >>> cutter.push("one E"), cutter.push("N"), cutter.push("D two")
    ('one ', '', '')
    >>> cutter.hit
    True
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.hit = False

    def push(self, text: str) -> str:
        """What may be shown."""
        if self.hit:
            return ""
        held = self._held + text
        found = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if found:
            self.hit, self._held = True, ""
            return held[: min(found)]
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """What was held back for a stop string that never came."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``, but not all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


@lru_cache(maxsize=1)
def _byte_letters() -> dict[str, int]:
    """The letter that byte-level vocabularies write for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(value): value for value in printable}
    others = [value for value in range(256) if value not in set(printable)]
    return letters | {chr(256 + place): value for place, value in enumerate(others)}


def is_byte_level(tokenizer: Any) -> bool:
    """Whether tokens are written in the letters of a byte-level vocabulary."""
    inner = getattr(tokenizer, "backend_tokenizer", None)
    return "ByteLevel" in f"{inner.decoder!r}{inner.pre_tokenizer!r}" if inner is not None else False


def token_bytes(tokenizer: Any, token: int, byte_level: bool) -> bytes:
    """The bytes one token stands for, also where they are only part of a character."""
    written = tokenizer.convert_ids_to_tokens(token)
    if written is None:  # a padded vocabulary has rows without a token
        return b""
    if written in tokenizer.all_special_tokens:
        return written.encode()
    letters = _byte_letters()
    if byte_level and all(letter in letters for letter in written):
        return bytes(letters[letter] for letter in written)
    single = BYTE.fullmatch(written)
    return bytes([int(single[1], 16)]) if single else written.replace("\u2581", " ").encode()


class TokenBytes:
    """Bytes and printable text of single tokens, remembered."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._byte_level = is_byte_level(tokenizer)
        self._known: dict[int, bytes] = {}

    def __getitem__(self, token: int) -> bytes:
        if token not in self._known:
            self._known[token] = token_bytes(self._tokenizer, token, self._byte_level)
        return self._known[token]
