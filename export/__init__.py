"""A checkpoint -> ONNX and a repository ready to serve; makes the random checkpoint too."""
