"""The engine: conversations in slots, computed together tick by tick. Independent of Triton."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from heapq import heappop, heappush
from pathlib import Path
from typing import Any, Generic

import torch

from config.options import Options
from config.settings import Settings
from contract.errors import ErrorCode
from contract.events import Error, Reset
from engine.checkpoint import Checkpoint, load_checkpoint
from engine.code_predictor import CodePredictor, OnnxCodePredictor, TorchCodePredictor
from engine.dialect import C, Dialect, Row
from engine.errors import ConversationError, DeviceLostError, EngineFullError, KernelError
from engine.graph_runner import GraphRunner
from engine.kernel_compiler import compiler_problem
from engine.memory import CUDA_WORKING, available_bytes, fill_slots, plan_memory, resolve_slots
from engine.options import parse_options
from engine.sca.dialect import ScaDialect
from engine.slots import SlotState
from engine.stage_timer import StageTimer
from engine.tick import TickInput, TickResult
from engine.tick_load import TickLoad
from engine.turn.dialect import TurnDialect

DIALECTS: dict[str, Callable[..., Dialect[Any]]] = {"turn": TurnDialect, "sca": ScaDialect}
STICKY = "CUDA error"  # prefix of torch's messages for errors after which no kernel runs in this process


class Engine(Generic[C]):
    """Owner of the slots and of the open conversations; a key of any hashable type identifies a conversation.

    Not thread-safe: all calls come from one thread.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: Settings,
        predictor: CodePredictor | None = None,
        clock: Callable[[], float] = time.monotonic,
        cuda_working: int = CUDA_WORKING,
    ):
        """Allocate the slots. `cuda_working` is the memory plan's share for everything but weights and caches.

        `predictor` completes codec frames; default: torch's. Raises `MemoryRefusedError`, `OptionError` or
        `SettingsError`.
        """
        model = checkpoint.model
        weights = sum(parameter.nbytes for parameter in model.parameters())
        available = weights + available_bytes(model.device)  # the weights are already loaded
        settings = resolve_slots(model.config, settings, model.device, model.dtype, available)
        self.memory = plan_memory(model.config, settings, weights, model.dtype, model.device, cuda_working)
        self.memory.expect_fit(available, f"{model.device.type}, including the weights,")
        self.settings = settings
        self.device: torch.device = model.device
        self.slots = SlotState(checkpoint, settings)
        self.timer = StageTimer(self.device)
        self.stage_seconds: Counter[str] = Counter()  # seconds by stage, over all ticks
        self.load = TickLoad(settings.audio.tick_ms / 1000, settings.engine.tick_share)
        rows = self.slots.buckets.of(settings.engine.slots)
        predictor = predictor or TorchCodePredictor(model.talker, rows, self.slots.row_minimums.products)
        self.dialect: Dialect[C] = DIALECTS[settings.engine.dialect](
            checkpoint, settings, self.slots, predictor, GraphRunner(self.timer)
        )
        self.voices: list[str] = list(model.config.talker_config.speaker_id)
        self.lost = ""  # the error that made the device unusable, empty while it works
        self._clock = clock
        self._free = list(range(settings.engine.slots))  # a heap of free slots
        self._conversations: dict[Hashable, C] = {}
        self._last_tick_s: dict[Hashable, float] = {}
        self.parse_options({})  # the defaults of the settings must be valid for this checkpoint

    @torch.inference_mode()
    def tick(self, inputs: Mapping[Hashable, TickInput]) -> dict[Hashable, TickResult]:
        """Compute one tick of the conversations in `inputs`, in batches. Return each one's output or error.

        A conversation that cannot continue is closed, and its result is the error. If the computation itself fails,
        the state of the caches is unknown: all conversations of the tick are closed and the failure is raised, as
        `DeviceLostError` if the device has failed permanently.
        """
        started_s = time.perf_counter()
        rows, results = self._rows(inputs)
        if not rows:
            return results
        try:
            plan = self.dialect.schedule(list(rows.values()))  # advance conversations, apply the prefill budget
            self.dialect.prefill(plan)  # append audio, text and prompts to the caches, in batches
            self.dialect.decode(plan)  # decode text tokens and codec frames, in batches
            outputs = self.dialect.postprocess(plan)  # outputs and events; waits for the device
        except BaseException as error:
            self._fail(list(rows), error)
            raise
        for slot in self.slots.non_finite([row.conversation.slot for row in rows.values()]):
            outputs[slot] = ConversationError(
                "the model's numbers overflowed (NaN or infinity), the conversation is closed"
            )
        for key, row in rows.items():
            results[key] = self._complete(key, row, outputs[row.conversation.slot])
        self.stage_seconds.update(self.timer.read())
        self.load.note(self._clock(), time.perf_counter() - started_s, len(rows))
        return results

    @torch.inference_mode()
    def open(self, key: Hashable, options: Options) -> None:
        """Open a conversation under `key`; close an open one of this key first.

        Raises `EngineFullError` if no slot is free or ticks leave no time for another conversation, `OptionError` if
        the system prompt is too long.
        """
        self.close(key)
        if not self._free:
            raise EngineFullError(
                f"all {self.settings.engine.slots} slots hold a conversation (engine.slots), try again later"
            )
        if refusal := self.load.refusal(self._clock(), len(self._conversations)):
            raise EngineFullError(f"{refusal}, try again later")
        slot = heappop(self._free)  # the lowest free slot: CPU attention runs over the range of slots in use
        try:
            self._conversations[key] = self.dialect.begin(slot, options)
            self._last_tick_s[key] = self._clock()
        except BaseException:
            self._release(slot)
            raise

    @torch.inference_mode()
    def reset(self, key: Hashable) -> None:
        """Restart the conversation in its slot, with its options. Raises `ConversationError`."""
        conversation = self.conversation(key)
        self.slots.reset(conversation.slot)
        self._conversations[key] = self.dialect.begin(conversation.slot, conversation.options)

    @torch.inference_mode()
    def close(self, key: Hashable) -> None:
        """Close a conversation, erase its state and free its slot. A no-op if it is not open."""
        conversation = self._conversations.pop(key, None)
        if conversation is not None:
            del self._last_tick_s[key]
            self._release(conversation.slot)

    def sweep(self) -> list[Hashable]:
        """Close and return conversations idle for `engine.idle_timeout_s`: Triton does not report dead sequences."""
        oldest = self._clock() - self.settings.engine.idle_timeout_s
        idle = [key for key, last_tick_s in self._last_tick_s.items() if last_tick_s < oldest]
        for key in idle:
            self.close(key)
        return idle

    def parse_options(self, parameters: Mapping[str, Any]) -> Options:
        """Return a conversation's options from request parameters. Raises `OptionError`."""
        return parse_options(parameters, self.settings, self.voices)

    @property
    def open_conversations(self) -> int:
        """Number of open conversations, each of which uses a slot."""
        return len(self._conversations)

    def conversation(self, key: Hashable) -> C:
        """Return the state machine of an open conversation. Raises `ConversationError`."""
        try:
            return self._conversations[key]
        except KeyError:
            raise ConversationError(
                f"conversation {key!r} is not open: its START failed, or it was idle for more than "
                f"{self.settings.engine.idle_timeout_s:g} s, or it has ended"
            ) from None

    def thinker_length(self, key: Hashable) -> int:
        """Return how many positions a conversation uses in the thinker's cache. Raises `ConversationError`."""
        return self.conversation(key).thinker_length

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Capture every batch size (on CUDA) and run a conversation, so that the first tick served is not slower."""
        if self.device.type == "cuda":
            self.dialect.capture(self.settings.engine.cuda_graphs)
        key, audio = object(), self.settings.audio
        self.open(key, self.parse_options({}))
        silence = torch.full((128, audio.mel_frames), -10.0)
        pcm = torch.zeros(audio.input_samples, dtype=torch.int16).numpy()
        for controls in self.dialect.warm_up_controls:
            self.tick({key: TickInput(silence, pcm, controls)})
        self.close(key)

    def _rows(self, inputs: Mapping[Hashable, TickInput]) -> tuple[dict[Hashable, Row], dict[Hashable, TickResult]]:
        """Return the rows of the tick, sorted by slot, and the errors of keys that are not open."""
        if self.lost:
            raise DeviceLostError(self.lost)
        rows: dict[Hashable, Row] = {}
        errors: dict[Hashable, TickResult] = {}
        for key, tick in inputs.items():
            try:
                rows[key] = Row(self.conversation(key), tick)
                self._last_tick_s[key] = self._clock()
            except ConversationError as error:
                errors[key] = error
        return dict(sorted(rows.items(), key=lambda item: item[1].conversation.slot)), errors

    def _complete(self, key: Hashable, row: Row, result: TickResult) -> TickResult:
        """Close a conversation that failed; add the engine's own events to the output of any other."""
        if isinstance(result, ConversationError):
            self.close(key)
            return result
        if rejected := row.input.rejected:
            error = Error(at_ms=row.conversation.clock_ms, code=ErrorCode.BAD_CONTROL, message=rejected)
            result.events.insert(0, error)
        if row.input.controls.reset:
            result.events.insert(0, Reset(at_ms=0))
        return result

    def _fail(self, keys: list[Hashable], error: BaseException) -> None:
        """Close the conversations of a failed tick. Raises `DeviceLostError` if the device has failed permanently."""
        if isinstance(error, RuntimeError) and str(error).startswith(STICKY):
            self.lost = str(error).splitlines()[0]
            self._conversations.clear()
            self._last_tick_s.clear()
            raise DeviceLostError(self.lost) from error
        for key in keys:
            try:
                self.close(key)
            except RuntimeError as failure:  # closing failed with the same error: the device is lost
                self.lost = str(failure).splitlines()[0]
                raise DeviceLostError(self.lost) from error

    def _release(self, slot: int) -> None:
        self.slots.reset(slot)
        heappush(self._free, slot)


def load_engine(source: str, settings: Settings, predictor: Path | None = None) -> Engine[Any]:
    """Load the checkpoint at `source` into a warmed-up engine. Sets options of torch for the whole process.

    `predictor` is a folder with the code predictor's ONNX graphs, used on a CPU. Raises `CheckpointError`,
    `OptionError`, `MemoryRefusedError`, or `KernelError` if the CUDA kernels cannot be compiled.
    """
    torch.set_num_threads(settings.engine.cpu_threads)
    torch.backends.cudnn.allow_tf32 = False  # TF32 would break the exactness of float32
    checkpoint = load_checkpoint(source, settings.qwen)
    checkpoint.model.code2wav = None  # served as ONNX, not by the engine
    checkpoint.model.thinker.visual = None  # images are not supported

    def make(chosen: Settings, cuda_working: int = CUDA_WORKING) -> Engine[Any]:
        on_cpu = checkpoint.model.device.type == "cpu" and predictor is not None
        graphs = OnnxCodePredictor(predictor) if on_cpu and predictor else None
        return Engine(checkpoint, chosen, graphs, cuda_working=cuda_working)

    if checkpoint.model.device.type == "cpu":
        return _warmed_up(make(settings))
    try:
        if settings.engine.slots:
            return _warmed_up(make(settings))
        return fill_slots(make, settings, checkpoint.model.device)
    except (subprocess.CalledProcessError, RuntimeError) as error:
        problem = compiler_problem()  # only after a failure: cached kernels need no compiler
        if problem:
            raise KernelError(f"the CUDA kernels cannot be compiled: {problem}") from error
        raise


def _warmed_up(engine: Engine[Any]) -> Engine[Any]:
    engine.warm_up()
    return engine
