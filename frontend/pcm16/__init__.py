"""The protocol of `/ws/pcm16`: PCM16 in binary frames, controls and events as JSON in text frames."""
