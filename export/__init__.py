"""A checkpoint -> ONNX and a repository ready to serve; the tiny checkpoint too."""
