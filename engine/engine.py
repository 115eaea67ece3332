"""The engine: conversations in slots, ticked together. It knows nothing of Triton."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import torch
from torch import Tensor

from config.settings import Settings
from engine.checkpoint import Checkpoint, load_checkpoint
from engine.conversation import Conversation
from engine.dialect_sca import ScaDialect
from engine.errors import ContextFullError, ConversationError, SlotsFullError
from engine.memory import available_bytes, plan_memory, resolve_slots
from engine.options import Options, parse_options
from engine.text import TextStream


@dataclass(frozen=True)
class Spoken:
    """What a conversation said in a tick."""

    codes: Tensor  # [16, frames] int64, on the CPU
    tokens: list[int]  # the text tokens
    text: str  # what the text grew by


class Engine:
    """Owns the slots. A conversation is known by any key; one key is one conversation.

    Not thread-safe: one thread calls it.
    """

    def __init__(self, checkpoint: Checkpoint, settings: Settings, clock: Callable[[], float] = time.monotonic):
        model = checkpoint.model
        settings = resolve_slots(model.config, settings, model.device, model.dtype)
        weights = sum(parameter.nbytes for parameter in model.parameters())
        self.memory = plan_memory(model.config, settings, weights, model.dtype, model.device)
        self.memory.expect_fit(weights + available_bytes(model.device), f"{model.device.type}, the weights counted in,")
        self.settings = settings
        self.dialect = ScaDialect(checkpoint, settings)
        self.stage_seconds: Counter[str] = Counter()  # where all ticks' time went
        self.voices: list[str] = sorted(checkpoint.model.config.talker_config.speaker_id)
        self._tokenizer = checkpoint.tokenizer
        self._clock = clock
        self._free = list(range(settings.engine.slots))  # a heap
        self._conversations: dict[Hashable, Conversation] = {}
        self.parse_options({})  # the settings' own defaults must be possible with this checkpoint

    @property
    def open_conversations(self) -> int:
        """How many slots are taken."""
        return len(self._conversations)

    def parse_options(self, parameters: Mapping[str, Any]) -> Options:
        """A conversation's options from request parameters. Raises `OptionError`."""
        return parse_options(parameters, self.settings.engine, self.settings.sampling, self.voices)

    @torch.inference_mode()
    def open(self, key: Hashable, options: Options) -> None:
        """Begins a conversation; one that is open under `key` is closed first.

        Raises `SlotsFullError` when no slot is free, `OptionError` when the system prompt is too long.
        """
        self.close(key)
        if not self._free:
            raise SlotsFullError(
                f"all {self.settings.engine.slots} slots hold a conversation (engine.slots), try again later"
            )
        slot = heappop(self._free)  # the lowest: batches stay close together
        try:
            self._conversations[key] = self._begin(slot, options)
        except BaseException:
            self._release(slot)
            raise

    @torch.inference_mode()
    def reset(self, key: Hashable) -> None:
        """Begins the conversation anew, with its options. Raises `ConversationError`."""
        options = self._conversation(key).options
        self.close(key)
        self.open(key, options)

    @torch.inference_mode()
    def tick(self, log_mels: Mapping[Hashable, Tensor]) -> dict[Hashable, Spoken | ConversationError]:
        """One tick of each conversation named, all together. Each log-mel is [128, T].

        A conversation that cannot take the tick gets its error in place of an answer. Should the computation itself
        fail, the conversations in it are closed, since their caches are no longer known, and the failure is raised.
        """
        results: dict[Hashable, Spoken | ConversationError] = {}
        ready: dict[Hashable, Conversation] = {}
        for key in log_mels:
            try:
                ready[key] = self._ready(key)
            except ConversationError as error:
                results[key] = error
            except BaseException:  # in the middle of a slide: its caches are no longer known
                self.close(key)
                raise
        if ready:
            ready = dict(sorted(ready.items(), key=lambda item: item[1].slot))
            try:
                results.update(self._tick(ready, torch.stack([log_mels[key] for key in ready])))
            except BaseException:
                for key in ready:
                    self.close(key)
                raise
        return results

    def close(self, key: Hashable) -> None:
        """Ends a conversation and frees its slot; nothing of it is kept. One that is not open is no error."""
        conversation = self._conversations.pop(key, None)
        if conversation is not None:
            self._release(conversation.slot)

    def positions(self, key: Hashable) -> int:
        """How many positions of the thinker's cache a conversation takes. Raises `ConversationError`."""
        return self.dialect.positions(self._conversation(key))

    def sweep(self) -> list[Hashable]:
        """Closes and returns the conversations that have been idle for too long: Triton never says that one died."""
        oldest = self._clock() - self.settings.engine.idle_timeout_s
        idle = [key for key, conversation in self._conversations.items() if conversation.last_tick_s < oldest]
        for key in idle:
            self.close(key)
        return idle

    @torch.inference_mode()
    def warm_up(self) -> None:
        """On CUDA, every size of batch; then two ticks of a conversation: a first tick is as fast as a second."""
        if self.dialect.device.type == "cuda":
            self.dialect.rehearse(capture=self.settings.engine.cuda_graphs)
        key = object()
        self.open(key, self.parse_options({}))
        silence = torch.full((128, self.settings.audio.mel_frames), -1.5)
        for _ in range(2):
            self.tick({key: silence})
        self.close(key)

    def _begin(self, slot: int, options: Options) -> Conversation:
        conversation = Conversation(
            slot=slot,
            options=options,
            text=TextStream(self._tokenizer),
            last_tick_s=self._clock(),
        )
        self.dialect.begin(conversation)
        return conversation

    def _conversation(self, key: Hashable) -> Conversation:
        try:
            return self._conversations[key]
        except KeyError:
            raise ConversationError(
                f"conversation {key!r} is not open: its START failed, or it was idle for more than "
                f"{self.settings.engine.idle_timeout_s:g} s, or it has ended"
            ) from None

    def _ready(self, key: Hashable) -> Conversation:
        conversation = self._conversation(key)
        conversation.last_tick_s = self._clock()
        if self.dialect.is_full(conversation):
            if self.settings.engine.context_full == "stop":
                raise ContextFullError(
                    f"conversation {key!r} has filled its context of {self.settings.engine.context_s} s "
                    "(engine.context_s): reset it, open another, or serve with engine.context_full = 'slide'"
                )
            with self.dialect.stopwatch("slide"):
                self.dialect.slide(conversation)
        return conversation

    def _tick(self, ready: Mapping[Hashable, Conversation], log_mel: Tensor) -> dict[Hashable, Spoken]:
        codes, tokens = self.dialect.tick(list(ready.values()), log_mel)
        self.stage_seconds.update(self.dialect.stopwatch.read())
        spoken = tokens.tolist()
        return {
            key: Spoken(codes[row], spoken[row], conversation.text.feed(spoken[row]))
            for row, (key, conversation) in enumerate(ready.items())
        }

    def _release(self, slot: int) -> None:
        self.dialect.end(slot)
        heappush(self._free, slot)


def load_engine(source: str, settings: Settings) -> Engine:
    """An engine over the checkpoint at `source`, alone in its process. Raises `CheckpointError` or `OptionError`."""
    torch.set_num_threads(settings.engine.cpu_threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32: in TF32 nothing here would be exact
    checkpoint = load_checkpoint(source, settings.qwen)
    checkpoint.model.code2wav = None  # runs as ONNX
    checkpoint.model.thinker.visual = None  # nobody looks
    return Engine(checkpoint, settings)
