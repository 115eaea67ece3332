"""The errors of the engine. Each message says what was expected, what came, and what to do."""

from __future__ import annotations

from typing import ClassVar

from contract.errors import ErrorCode


class ConversationError(Exception):
    """A conversation cannot continue: its tick failed and it is closed. Other conversations are not affected."""

    code: ClassVar[ErrorCode] = ErrorCode.TICK_FAILED


class OptionError(ConversationError):
    """An option or a control is unknown or not possible."""

    code = ErrorCode.BAD_OPTION


class PromptTooLongError(OptionError):
    """The system prompt has more tokens than the engine prefills: only the engine can count them."""

    code = ErrorCode.PROMPT_TOO_LONG


class EngineFullError(ConversationError):
    """Every slot holds a conversation, or ticks take too much of their time to add one."""

    code = ErrorCode.FULL


class ContextFullError(ConversationError):
    """The conversation has filled its caches, and `engine.context_full` is `stop`."""

    code = ErrorCode.CONTEXT_FULL


class DeviceLostError(RuntimeError):
    """The device has failed for good (a CUDA error that sticks): this process can compute no further tick."""

    code: ClassVar[ErrorCode] = ErrorCode.TICK_FAILED


class CheckpointError(Exception):
    """A checkpoint cannot be served: not Qwen3-Omni, weights missing, or not found. Raised at start-up."""


class KernelError(RuntimeError):
    """The CUDA kernels cannot be compiled on this machine: the message names what is missing. Raised at start-up."""


class MemoryRefusedError(RuntimeError):
    """The settings require more memory than the device has. Raised at start-up."""
