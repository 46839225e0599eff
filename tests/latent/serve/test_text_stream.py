"""Text that streams is the text that is there in the end, and never half a character."""

from __future__ import annotations

from typing import Any

import latent_tiny as tiny
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from smelt.latent.text_stream import StopCutter, TextStream, TokenBytes

BYTES = tiny.byte_tokenizer()


def sentence_pieces() -> PreTrainedTokenizerFast:
    """Words with a leading mark, single letters, and bytes for the rest, as Llama 2 had it."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    words = ["▁", "▁the", "▁cat", "s", "a", "t", "h", "e", "é", "▁é"]
    pieces = ["<s>", "</s>", "<pad>", *[f"<0x{value:02X}>" for value in range(256)], *words]
    core = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[], byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


PIECES = sentence_pieces()


def streamed(tokenizer: Any, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*(stream.push(token) for token in ids), stream.flush()]


@given(st.text(min_size=1, max_size=120))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
def test_pieces_join_to_the_whole_text(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == whole


@given(st.lists(st.integers(0, 257), min_size=1, max_size=400))
@settings(max_examples=60, deadline=None)
def test_any_ids_join_to_the_whole_text(ids: list[int]) -> None:
    """Random bytes: mostly no characters at all; special tokens show nothing."""
    assert "".join(streamed(BYTES, ids)) == BYTES.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
def test_half_a_character_is_held_back(tokenizer: Any) -> None:
    ids = tokenizer("a€")["input_ids"]
    pieces = streamed(tokenizer, ids)
    assert "€" in pieces and not any("\ufffd" in piece for piece in pieces)
    cut = streamed(tokenizer, ids[:-1])
    assert "\ufffd" not in "".join(cut[:-1]) and "\ufffd" in cut[-1]  # it never came: said at the end


def test_a_long_text_costs_the_same_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are decoded in a window, not all over again each time."""
    longest = 0

    class Counting:
        def decode(self, ids: list[int], **options: Any) -> str:
            nonlocal longest
            longest = max(longest, len(ids))
            return BYTES.decode(ids, **options)

    ids = BYTES("word " * 400)["input_ids"]
    assert "".join(streamed(Counting(), ids)) == "word " * 400
    assert longest < 64


@given(st.lists(st.sampled_from(["a", "b", "ab", "aab", "é", ""]), max_size=30),
       st.lists(st.sampled_from(["aab", "ba", "bb", "é", "abab"]), min_size=1, max_size=3))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_a_stop_string_cuts_where_it_first_occurs(pieces: list[str], stops: list[str]) -> None:
    cutter = StopCutter(stops)
    shown = "".join(cutter.push(piece) for piece in pieces)
    whole = "".join(pieces)
    places = [whole.find(stop) for stop in stops if stop in whole]
    if cutter.hit:
        # the first that was complete wins: nothing of it is shown
        assert shown == whole[: len(shown)] and any(whole[len(shown) :].startswith(stop) for stop in stops)
        assert len(shown) <= max(places)
    else:
        assert not places and shown + cutter.flush() == whole


def test_tokens_know_their_bytes() -> None:
    for tokenizer in (BYTES, PIECES):
        known = TokenBytes(tokenizer)
        ids = tokenizer("the cat é €\n")["input_ids"]
        joined = b"".join(known[token] for token in ids).decode()
        assert joined.removeprefix(" ") == "the cat é €\n"
    assert TokenBytes(BYTES)[257] == b"</s>"
