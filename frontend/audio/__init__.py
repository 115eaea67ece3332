"""Audio formats of the protocols: PCM16, G.711, base64 and resampling."""
