"""PCM16, the audio format between client, bridge and engine."""

from __future__ import annotations

from config.settings import INPUT_HZ

SAMPLE_BYTES = 2
INPUT_BYTES_PER_SECOND = INPUT_HZ * SAMPLE_BYTES
