"""The bridge between a browser's WebSocket and Triton, and its page."""
