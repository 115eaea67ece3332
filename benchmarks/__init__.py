"""Benchmarks: speed, load, quality, soak and capacity of the engine and of a server. No test asserts a time."""
