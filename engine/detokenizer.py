"""Text tokens to text, a few at a time, whole characters only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers.decoders import DecodeStream


class Detokenizer:
    """Decodes one conversation's tokens; an unfinished character waits for the rest of it.

    Special tokens have no text; the stream would keep them until some text comes, so it does not get them. Bytes that
    are not UTF-8 become U+FFFD.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer.backend_tokenizer
        self._vocabulary = len(tokenizer)  # the head may have rows past it
        self._special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        self._stream = DecodeStream(skip_special_tokens=True)

    def feed(self, tokens: Iterable[int]) -> str:
        """The text that `tokens` complete."""
        known = (token for token in tokens if token < self._vocabulary and token not in self._special)
        return "".join(self._stream.step(self._tokenizer, token) or "" for token in known)
