"""The engine: conversations in slots, ticked together. It knows nothing of Triton."""

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
STICKY = "CUDA error"  # how torch begins the errors after which no kernel runs any more


class Engine(Generic[C]):
    """Owns the slots. A conversation is known by any key; one key is one conversation.

    Not thread-safe: one thread calls it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: Settings,
        predictor: CodePredictor | None = None,
        clock: Callable[[], float] = time.monotonic,
        cuda_working: int = CUDA_WORKING,
    ):
        """`predictor` completes codec frames, torch's own by default; `cuda_working` is for the memory plan."""
        model = checkpoint.model
        weights = sum(parameter.nbytes for parameter in model.parameters())
        available = weights + available_bytes(model.device)  # the weights are there already
        settings = resolve_slots(model.config, settings, model.device, model.dtype, available)
        self.memory = plan_memory(model.config, settings, weights, model.dtype, model.device, cuda_working)
        self.memory.expect_fit(available, f"{model.device.type}, the weights counted in,")
        self.settings = settings
        self.device: torch.device = model.device
        self.slots = SlotState(checkpoint, settings)
        self.timer = StageTimer(self.device)
        self.stage_seconds: Counter[str] = Counter()  # where all ticks' time went
        self.load = TickLoad(settings.audio.tick_ms / 1000, settings.engine.tick_share)
        predictor = predictor or TorchCodePredictor(model.talker, self.slots.buckets.of(settings.engine.slots))
        self.dialect: Dialect[C] = DIALECTS[settings.engine.dialect](
            checkpoint, settings, self.slots, predictor, GraphRunner(self.timer)
        )
        self.voices: list[str] = list(model.config.talker_config.speaker_id)
        self.lost = ""  # why the device computes nothing any more
        self._clock = clock
        self._free = list(range(settings.engine.slots))  # a heap
        self._conversations: dict[Hashable, C] = {}
        self._last_tick_s: dict[Hashable, float] = {}
        self.parse_options({})  # the settings' own defaults must be possible with this checkpoint

    @torch.inference_mode()
    def tick(self, inputs: Mapping[Hashable, TickInput]) -> dict[Hashable, TickResult]:
        """One tick of each conversation named, all together.

        A conversation that cannot go on gets its error in place of an output and is closed. Should the computation
        itself fail, all conversations in it are closed, since their caches are no longer known, and the failure is
        raised: `DeviceLostError` where the device will never compute again.
        """
        started_s = time.perf_counter()
        rows, results = self._rows(inputs)
        if not rows:
            return results
        try:
            plan = self.dialect.schedule(list(rows.values()))  # who hears what, and what of it fits this tick's budget
            self.dialect.prefill(plan)  # audio, text and prompts into the caches, in batches
            self.dialect.decode(plan)  # text tokens and codec frames, in batches
            outputs = self.dialect.postprocess(plan)  # results and events; waits for the device
        except BaseException as error:
            self._fail(list(rows), error)
            raise
        for slot in self.slots.broken([row.conversation.slot for row in rows.values()]):
            outputs[slot] = ConversationError(
                "the model's numbers overflowed (NaN or infinity), the conversation is closed"
            )
        for key, row in rows.items():
            results[key] = self._settle(key, row, outputs[row.conversation.slot])
        self.stage_seconds.update(self.timer.read())
        self.load.note(self._clock(), time.perf_counter() - started_s, len(rows))
        return results

    @torch.inference_mode()
    def open(self, key: Hashable, options: Options) -> None:
        """Begins a conversation; one that is open under `key` is closed first.

        Raises `EngineFullError` when no slot is free or ticks have no time for one more, `OptionError` when the system
        prompt is too long.
        """
        self.close(key)
        if not self._free:
            raise EngineFullError(
                f"all {self.settings.engine.slots} slots hold a conversation (engine.slots), try again later"
            )
        if refusal := self.load.refusal(self._clock(), len(self._conversations)):
            raise EngineFullError(f"{refusal}, try again later")
        slot = heappop(self._free)  # the lowest: batches stay close together
        try:
            self._conversations[key] = self.dialect.begin(slot, options)
            self._last_tick_s[key] = self._clock()
        except BaseException:
            self._release(slot)
            raise

    @torch.inference_mode()
    def reset(self, key: Hashable) -> None:
        """Begins the conversation anew in its slot, with its options. Raises `ConversationError`."""
        conversation = self.conversation(key)
        self.slots.reset(conversation.slot)
        self._conversations[key] = self.dialect.begin(conversation.slot, conversation.options)

    @torch.inference_mode()
    def close(self, key: Hashable) -> None:
        """Ends a conversation and frees its slot; nothing of it is kept. A no-op if it is not open."""
        conversation = self._conversations.pop(key, None)
        if conversation is not None:
            del self._last_tick_s[key]
            self._release(conversation.slot)

    def sweep(self) -> list[Hashable]:
        """Closes and returns the conversations that have been idle for too long: Triton never says that one died."""
        oldest = self._clock() - self.settings.engine.idle_timeout_s
        idle = [key for key, last_tick_s in self._last_tick_s.items() if last_tick_s < oldest]
        for key in idle:
            self.close(key)
        return idle

    def parse_options(self, parameters: Mapping[str, Any]) -> Options:
        """A conversation's options from request parameters. Raises `OptionError`."""
        return parse_options(parameters, self.settings, self.voices)

    @property
    def open_conversations(self) -> int:
        """How many slots are taken."""
        return len(self._conversations)

    def conversation(self, key: Hashable) -> C:
        """The state machine of an open conversation. Raises `ConversationError`."""
        try:
            return self._conversations[key]
        except KeyError:
            raise ConversationError(
                f"conversation {key!r} is not open: its START failed, or it was idle for more than "
                f"{self.settings.engine.idle_timeout_s:g} s, or it has ended"
            ) from None

    def thinker_length(self, key: Hashable) -> int:
        """Positions of the thinker's cache that a conversation takes. Raises `ConversationError`."""
        return self.conversation(key).thinker_length

    @torch.inference_mode()
    def warm_up(self) -> None:
        """On CUDA, every size of batch; then a few ticks of a conversation: a first is as fast as a second."""
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
        """The conversations that tick, sorted by slot, and the errors of keys that are not open."""
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

    def _settle(self, key: Hashable, row: Row, result: TickResult) -> TickResult:
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
        """Closes the conversations of a failed tick; a device that is lost is not asked to forget them."""
        if isinstance(error, RuntimeError) and str(error).startswith(STICKY):
            self.lost = str(error).splitlines()[0]
            self._conversations.clear()
            self._last_tick_s.clear()
            raise DeviceLostError(self.lost) from error
        for key in keys:
            try:
                self.close(key)
            except RuntimeError as failure:  # nor can it forget: the same error again
                self.lost = str(failure).splitlines()[0]
                raise DeviceLostError(self.lost) from error

    def _release(self, slot: int) -> None:
        self.slots.reset(slot)
        heappush(self._free, slot)


def load_engine(source: str, settings: Settings, predictor: Path | None = None) -> Engine[Any]:
    """An engine over the checkpoint at `source`, alone in its process.

    `predictor` is a folder with the code predictor's ONNX graphs, for the CPU. Raises `CheckpointError`, `OptionError`
    or, where the CUDA kernels cannot be compiled, `KernelError`.
    """
    torch.set_num_threads(settings.engine.cpu_threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32: in TF32 nothing here would be exact
    checkpoint = load_checkpoint(source, settings.qwen)
    checkpoint.model.code2wav = None  # runs as ONNX
    checkpoint.model.thinker.visual = None  # no images

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
        problem = compiler_problem()  # asked only now: kernels compiled before need nothing
        if problem:
            raise KernelError(f"the CUDA kernels cannot be compiled: {problem}") from error
        raise


def _warmed_up(engine: Engine[Any]) -> Engine[Any]:
    engine.warm_up()
    return engine
