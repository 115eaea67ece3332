"""The thinker and the talker for many conversations at once; knows nothing of Triton."""
