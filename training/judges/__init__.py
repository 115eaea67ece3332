"""Judges of the default checkpoint: clients that hold conversations with a running server and score its answers."""
