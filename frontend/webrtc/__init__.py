"""WebRTC calls: SDP offers, audio tracks and the data channel."""
