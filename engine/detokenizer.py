"""Incremental conversion of text tokens to text, in complete characters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers.decoders import DecodeStream


class Detokenizer:
    """Decoder of one conversation's tokens; holds the bytes of an incomplete character until its last byte arrives.

    Special tokens have no text and are dropped here: `DecodeStream` would keep them until a token with text arrives.
    Bytes that are not UTF-8 become U+FFFD.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer.backend_tokenizer
        self._vocabulary = len(tokenizer)  # the LM head may be larger than the vocabulary
        self._special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        self._stream = DecodeStream(skip_special_tokens=True)

    def feed(self, tokens: Iterable[int]) -> str:
        """Append tokens and return the text that they complete."""
        known = (token for token in tokens if token < self._vocabulary and token not in self._special)
        return "".join(self._stream.step(self._tokenizer, token) or "" for token in known)
