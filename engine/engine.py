"""The engine: conversations in slots, ticked together. It knows nothing of Triton."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from heapq import heappop, heappush
from typing import Any

import numpy as np
import torch
from torch import Tensor

from config.settings import Settings
from engine.checkpoint import Checkpoint, load_checkpoint
from engine.conversation import Conversation, Heard, Spoken
from engine.dialect import Dialect
from engine.dialect_sca import ScaDialect
from engine.dialect_turn import TurnDialect
from engine.errors import ConversationError, SlotsFullError
from engine.memory import available_bytes, plan_memory, resolve_slots
from engine.options import Options, parse_options

DIALECTS: dict[str, Callable[[Checkpoint, Settings], Dialect]] = {"turn": TurnDialect, "sca": ScaDialect}


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
        self.dialect = DIALECTS[settings.engine.dialect](checkpoint, settings)
        self.stage_seconds: Counter[str] = Counter()  # where all ticks' time went
        self.codebook_size: int = model.config.talker_config.code_predictor_config.vocab_size
        self.voices: list[str] = sorted(checkpoint.model.config.talker_config.speaker_id)
        self._clock = clock
        self._free = list(range(settings.engine.slots))  # a heap
        self._conversations: dict[Hashable, Conversation] = {}
        self._last_tick_s: dict[Hashable, float] = {}
        self.parse_options({})  # the settings' own defaults must be possible with this checkpoint

    @property
    def open_conversations(self) -> int:
        """How many slots are taken."""
        return len(self._conversations)

    def parse_options(self, parameters: Mapping[str, Any]) -> Options:
        """A conversation's options from request parameters. Raises `OptionError`."""
        return parse_options(parameters, self.settings, self.voices)

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
            self._conversations[key] = self.dialect.begin(slot, options)
            self._last_tick_s[key] = self._clock()
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
    def tick(self, sounds: Mapping[Hashable, Heard | Tensor]) -> dict[Hashable, Spoken | ConversationError]:
        """One tick of each conversation named, all together; a log-mel [128, T] may come alone.

        A conversation that cannot take the tick gets its error in place of an answer. Should the computation itself
        fail, the conversations in it are closed, since their caches are no longer known, and the failure is raised.
        """
        heard = {key: sound if isinstance(sound, Heard) else Heard(sound) for key, sound in sounds.items()}
        results: dict[Hashable, Spoken | ConversationError] = {}
        ready: dict[Hashable, Conversation] = {}
        for key in heard:
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
                spoken = self.dialect.tick(list(ready.values()), [heard[key] for key in ready])
            except BaseException:
                for key in ready:
                    self.close(key)
                raise
            self.stage_seconds.update(self.dialect.stopwatch.read())
            for key, said in zip(ready, spoken, strict=True):
                if isinstance(said, ConversationError):
                    self.close(key)
                elif heard[key].controls.reset:
                    said.events.insert(0, {"type": "reset", "at_ms": 0})
                results[key] = said
        return results

    def close(self, key: Hashable) -> None:
        """Ends a conversation and frees its slot; nothing of it is kept. One that is not open is no error."""
        conversation = self._conversations.pop(key, None)
        if conversation is not None:
            del self._last_tick_s[key]
            self._release(conversation.slot)

    def positions(self, key: Hashable) -> int:
        """How many positions of the thinker's cache a conversation takes. Raises `ConversationError`."""
        return self.dialect.positions(self._conversation(key))

    def sweep(self) -> list[Hashable]:
        """Closes and returns the conversations that have been idle for too long: Triton never says that one died."""
        oldest = self._clock() - self.settings.engine.idle_timeout_s
        idle = [key for key, last_tick_s in self._last_tick_s.items() if last_tick_s < oldest]
        for key in idle:
            self.close(key)
        return idle

    @torch.inference_mode()
    def warm_up(self) -> None:
        """On CUDA, every size of batch; then a few ticks of a conversation: a first is as fast as a second."""
        if self.dialect.device.type == "cuda":
            self.dialect.rehearse(capture=self.settings.engine.cuda_graphs)
        key = object()
        self.open(key, self.parse_options({}))
        audio = self.settings.audio
        silence = Heard(torch.full((128, audio.mel_frames), -1.5), np.zeros(audio.input_samples, np.int16))
        for controls in self.dialect.rehearsal:
            self.tick({key: silence._replace(controls=controls)})
        self.close(key)

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
        self._last_tick_s[key] = self._clock()
        self.dialect.ready(conversation)
        return conversation

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
