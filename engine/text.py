"""Text tokens to text, a few at a time, whole characters only."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

BYTE_OF = {symbol: byte for byte, symbol in bytes_to_unicode().items()}  # GPT-2's byte-level alphabet


class TextStream:
    """Decodes one conversation's tokens; bytes of an unfinished character wait for the rest of it.

    Special tokens have no text. Bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._added = tokenizer.added_tokens_decoder  # tokens outside the byte-level vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, tokens: Iterable[int]) -> str:
        """The text that `tokens` complete."""
        return self._decoder.decode(b"".join(self._bytes(token) for token in tokens))

    def _bytes(self, token: int) -> bytes:
        if token in self._added:
            added = self._added[token]
            return b"" if added.special else str(added.content).encode()
        symbols = self._tokenizer.convert_ids_to_tokens(token) or ""  # the head may have rows past the vocabulary
        return bytes(BYTE_OF[symbol] for symbol in symbols)
