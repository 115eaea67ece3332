"""Token counts of a response, as the protocol reports them."""

from __future__ import annotations

from contract.events import Usage
from frontend.realtime.events import Event

NO_USAGE = Usage(input_tokens=0, input_audio_tokens=0, output_text_tokens=0, output_audio_tokens=0)
"""Usage of a response that never began, or that was counted by a lost server: clients require a usage."""


def usage_event(usage: Usage) -> Event:
    """Return the `usage` of a response."""
    output_tokens = usage.output_text_tokens + usage.output_audio_tokens
    return {
        "total_tokens": usage.input_tokens + output_tokens,
        "input_tokens": usage.input_tokens,
        "output_tokens": output_tokens,
        "input_token_details": {
            "text_tokens": usage.input_tokens - usage.input_audio_tokens,
            "audio_tokens": usage.input_audio_tokens,
            "image_tokens": 0,
            "cached_tokens": 0,
            "cached_tokens_details": {"text_tokens": 0, "audio_tokens": 0, "image_tokens": 0},
        },
        "output_token_details": {"text_tokens": usage.output_text_tokens, "audio_tokens": usage.output_audio_tokens},
    }
