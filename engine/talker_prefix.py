"""The talker's input before the first codec frame of an answer, which names the voice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from engine.talker import Talker
from engine.thinker import Thinker


def talker_prefix(config: Any, thinker: Thinker, talker: Talker, voice: str) -> Tensor:
    """Return the embeddings [1, TALKER_PREFIX, H'] of the prefix for a voice of the checkpoint.

    As `_get_talker_assistant_parts` of `Qwen3OmniMoeForConditionalGeneration` (transformers 5.20.2).
    """
    codec, device = config.talker_config, talker.decoder.device
    special = [codec.codec_nothink_id, codec.codec_think_bos_id, codec.codec_think_eos_id]
    codes = torch.tensor([[*special, codec.speaker_id[voice], codec.codec_pad_id]], device=device)
    text = torch.tensor([[config.tts_pad_token_id] * 4 + [config.tts_bos_token_id]], device=device)
    return talker.project_text(thinker.embed(text)) + talker.embed(codes)
