"""What can go wrong in a conversation; every message says what came and what was expected."""


class ConversationError(Exception):
    """A conversation cannot go on: its tick failed and it is closed. Other conversations are untouched."""


class OptionError(ConversationError):
    """An option of a conversation is unknown or impossible."""


class EngineFullError(ConversationError):
    """Every slot holds a conversation, or ticks already take too much of their time for one more."""


class ContextFullError(ConversationError):
    """The conversation has filled its caches, and `engine.context_full` is `stop`."""


class DeviceLostError(RuntimeError):
    """The device has failed for good (a CUDA error that sticks): no tick can be computed in this process any more."""


class CheckpointError(Exception):
    """A checkpoint cannot be served: not Qwen3-Omni, weights missing, or not found."""


class KernelError(RuntimeError):
    """The CUDA kernels cannot be compiled on this machine; the message says what is missing."""


class MemoryRefusedError(RuntimeError):
    """What the settings ask for does not fit into the device's memory."""
