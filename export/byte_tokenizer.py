"""Tokenizer of the random checkpoint: one token a byte, with the special tokens and chat format of Qwen3-Omni."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from export.chat_format import ROLES, with_chat_format


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE whose only merges spell the three roles; ids 0 to 255 are the bytes' sorted alphabet."""
    vocabulary = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    for role in ROLES:
        for end in range(2, len(role) + 1):
            merge = (role[: end - 1], role[end - 1])
            if merge not in merges:
                merges.append(merge)
                vocabulary.setdefault(role[:end], len(vocabulary))

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    return with_chat_format(tokenizer)
