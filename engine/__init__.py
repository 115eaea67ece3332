"""Inference of the thinker and the talker for many conversations at once, independent of Triton."""
