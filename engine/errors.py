"""What can go wrong in a conversation; every message says what came and what was expected."""


class ConversationError(Exception):
    """Something about one conversation's tick is wrong; other conversations are untouched."""


class OptionError(ConversationError):
    """An option of a conversation is unknown or impossible."""


class SlotsFullError(ConversationError):
    """Every slot holds a conversation."""


class ContextFullError(ConversationError):
    """The conversation has filled its caches."""


class CheckpointError(Exception):
    """A checkpoint cannot be served: not Qwen3-Omni, weights missing, or not found."""


class MemoryRefusedError(RuntimeError):
    """What the settings ask for does not fit into the device's memory."""
