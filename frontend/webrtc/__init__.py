"""WebRTC calls: SDP offers, audio tracks and the data channel. Imported only as an optional part of the bridge."""
