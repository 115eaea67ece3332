"""Conversion of a checkpoint to ONNX graphs and a model repository; creation of the random checkpoint."""
