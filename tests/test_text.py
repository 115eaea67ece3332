"""The detokenizer returns text in complete characters."""

from __future__ import annotations

import pytest

from engine.checkpoint import Checkpoint
from engine.detokenizer import Detokenizer


@pytest.mark.parametrize("text", ["plain", "héllo wörld", "오늘 날씨는 어때? 👩‍🚀", "a\n\tb\x00c"])
def test_text_is_returned_in_complete_characters(checkpoint: Checkpoint, text):
    stream = Detokenizer(checkpoint.tokenizer)
    pieces = [stream.feed([token]) for token in checkpoint.tokenizer.encode(text)]
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces), "expected no piece that ends within a character"


def test_incomplete_character_is_returned_with_its_last_byte(checkpoint: Checkpoint):
    first, second = checkpoint.tokenizer.encode("é")
    stream = Detokenizer(checkpoint.tokenizer)
    assert stream.feed([first]) == ""
    assert stream.feed([second]) == "é"


def test_invalid_utf8_becomes_a_replacement_character(checkpoint: Checkpoint):
    first, _ = checkpoint.tokenizer.encode("é")
    assert Detokenizer(checkpoint.tokenizer).feed([first, *checkpoint.tokenizer.encode("ok")]) == "\ufffdok"


def test_special_tokens_do_not_reach_the_decode_stream(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    """A duplex model may emit special tokens for an hour, and the stream would hold and decode all of them."""
    stream = Detokenizer(checkpoint.tokenizer)
    monkeypatch.setattr(stream, "_stream", None)
    assert stream.feed(checkpoint.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|audio_pad|>"] * 100)) == ""


def test_special_tokens_have_no_text(checkpoint: Checkpoint):
    tokens = checkpoint.tokenizer.encode("<|im_start|>user hi<|im_end|>")
    assert Detokenizer(checkpoint.tokenizer).feed(tokens) == "user hi"
