"""Text grows by whole characters."""

from __future__ import annotations

import pytest

from engine.checkpoint import Checkpoint
from engine.detokenizer import Detokenizer


@pytest.mark.parametrize("text", ["plain", "héllo wörld", "오늘 날씨는 어때? 👩‍🚀", "a\n\tb\x00c"])
def test_any_text_comes_back_in_whole_characters(checkpoint: Checkpoint, text):
    stream = Detokenizer(checkpoint.tokenizer)
    parts = [stream.feed([token]) for token in checkpoint.tokenizer.encode(text)]
    assert "".join(parts) == text
    assert all("\ufffd" not in part for part in parts), "no part ends within a character"


def test_half_a_character_waits_for_the_rest(checkpoint: Checkpoint):
    first, second = checkpoint.tokenizer.encode("é")
    stream = Detokenizer(checkpoint.tokenizer)
    assert stream.feed([first]) == ""
    assert stream.feed([second]) == "é"


def test_bytes_that_are_no_utf8_are_marked_and_lose_nothing_else(checkpoint: Checkpoint):
    first, _ = checkpoint.tokenizer.encode("é")
    assert Detokenizer(checkpoint.tokenizer).feed([first, *checkpoint.tokenizer.encode("ok")]) == "\ufffdok"


def test_silence_said_by_special_tokens_costs_nothing(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch):
    """A duplex model may give one at every step for an hour: the stream would keep and decode them all."""
    stream = Detokenizer(checkpoint.tokenizer)
    monkeypatch.setattr(stream, "_stream", None)
    assert stream.feed(checkpoint.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|audio_pad|>"] * 100)) == ""


def test_special_tokens_have_no_text(checkpoint: Checkpoint):
    tokens = checkpoint.tokenizer.encode("<|im_start|>user hi<|im_end|>")
    assert Detokenizer(checkpoint.tokenizer).feed(tokens) == "user hi"
