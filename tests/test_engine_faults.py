"""Faults of a conversation, of the device and of a full engine: their errors, and their effect on conversations."""

from __future__ import annotations

import pytest
import torch

from config.settings import MAX_PROMPT_CHARACTERS
from contract.controls import Controls
from engine.checkpoint import Checkpoint
from engine.engine import Engine
from engine.errors import ConversationError, DeviceLostError, EngineFullError, OptionError
from engine.prompt import PrefillBudget
from engine.stage_timer import StageTimer
from engine.tick import TickOutput
from engine.tick_load import MIN_TICKS, TickLoad


class FakeEvent:
    """A CUDA event on a device whose progress the test sets."""

    finished = 0.0  # time up to which the device has finished its work, in milliseconds
    now = 0.0  # time of the next event, in milliseconds

    def record(self) -> None:
        self.at = FakeEvent.now
        FakeEvent.now += 10

    def query(self) -> bool:
        return self.at <= FakeEvent.finished

    def elapsed_time(self, other: FakeEvent) -> float:
        if not (self.query() and other.query()):
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        return other.at - self.at


def test_stage_timer_includes_unfinished_work_in_a_later_read():
    timer = StageTimer(torch.device("cuda"), event=FakeEvent)
    for stage in ("text", "speaker"):
        with timer(stage):
            pass
    FakeEvent.finished = 10
    assert timer.read() == {"text": pytest.approx(0.01)}
    FakeEvent.finished = 100
    assert timer.read() == {"speaker": pytest.approx(0.01)}
    assert timer.read() == {}


def test_sticky_cuda_error_raises_device_lost_in_every_later_tick(engine: Engine, ticks, monkeypatch):
    """After an illegal access, torch raises this error in every call."""
    lost = torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCompile with ...")
    monkeypatch.setattr(engine.slots, "reset", lambda _: (_ for _ in ()).throw(lost))
    monkeypatch.setattr(engine.dialect, "prefill", lambda _: (_ for _ in ()).throw(lost))
    for key in ("a", "b"):
        engine.open(key, engine.parse_options({}))
    with pytest.raises(DeviceLostError, match="^CUDA error: an illegal memory access was encountered$"):
        engine.tick({"a": ticks[0], "b": ticks[0]})
    assert engine.open_conversations == 0
    with pytest.raises(DeviceLostError):
        engine.tick({"a": ticks[0]})


def test_out_of_memory_error_does_not_lose_the_device(engine: Engine, ticks, monkeypatch):
    engine.open("a", engine.parse_options({}))
    monkeypatch.setattr(
        engine.dialect, "prefill", lambda _: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried"))
    )
    with pytest.raises(torch.OutOfMemoryError):
        engine.tick({"a": ticks[0]})
    monkeypatch.undo()
    engine.open("b", engine.parse_options({}))
    assert isinstance(engine.tick({"b": ticks[0]})["b"], TickOutput)


@pytest.mark.parametrize("temperature", [0, 0.9])
@pytest.mark.parametrize("dialect", ["sca", "turn"])
@pytest.mark.parametrize("model", ["thinker", "talker"])
def test_nan_closes_only_its_own_conversation(checkpoint: Checkpoint, settings, ticks, dialect, model, temperature):
    """A NaN from an overflow in half precision stays in the caches until the slot is reset."""
    changed = settings.with_values(
        engine={"slots": 2, "dialect": dialect},
        turn={"detection": "manual"},
        sampling={"temperature": temperature, "text_temperature": temperature},
    )
    engine = Engine(checkpoint, changed)

    def tick(number: int, *keys: str) -> dict:
        controls = Controls(commit=number == 4) if dialect == "turn" else Controls()
        return engine.tick({key: ticks[number]._replace(controls=controls) for key in keys})

    def outputs_alone(key: str) -> list:
        engine.open(key, engine.parse_options({"seed": 7}))
        found = [tick(number, key)[key] for number in range(7)]
        engine.close(key)
        return [(output.tokens, output.codes.tolist()) for output in found]

    expected = outputs_alone("before")
    for key in ("broken", "whole"):
        engine.open(key, engine.parse_options({"seed": 7}))
    slot = engine.conversation("broken").slot
    for number in range(5):
        tick(number, "broken", "whole")
    getattr(engine.slots, f"{model}_cache").buffer[0, slot, :, 0] = torch.nan
    results = tick(5, "broken", "whole")
    assert isinstance(results["broken"], ConversationError)
    assert "NaN or infinity" in str(results["broken"])
    assert (results["whole"].tokens, results["whole"].codes.tolist()) == expected[5]
    assert engine.open_conversations == 1
    assert outputs_alone("after") == expected
    results = tick(6, "broken", "whole")
    assert "is not open" in str(results["broken"])
    assert (results["whole"].tokens, results["whole"].codes.tolist()) == expected[6]


def test_conversation_is_refused_if_ticks_leave_no_time_for_it():
    load = TickLoad(tick_s=0.32, share=0.9)
    for number in range(MIN_TICKS):
        load.note(now_s=number * 0.32, seconds=0.25, rows=8)
    assert load.refusal(7.0, open_conversations=12) is None, "13 conversations would take 271 of 288 ms"
    refusal = load.refusal(7.0, open_conversations=6)
    assert refusal.startswith(
        "ticks of 6 conversations take 250 of 320 ms (95th percentile of the last 10 s), too much"
    )
    assert load.refusal(60.0, open_conversations=6) is None, "the window is over"


def test_two_slow_ticks_in_the_window_refuse_no_conversation():
    load = TickLoad(tick_s=0.32, share=0.9)
    for number in range(MIN_TICKS):
        load.note(now_s=number * 0.32, seconds=0.3 if number in (7, 12) else 0.02, rows=1)
    assert load.refusal(7.0, open_conversations=1) is None, "two ticks of 20"
    load.note(7.0, seconds=0.3, rows=1)
    assert load.refusal(7.0, open_conversations=1), "three ticks of 21"


def test_histogram_counts_ticks_by_duration():
    load = TickLoad(tick_s=0.32, share=0.9)
    for number in range(MIN_TICKS):
        load.note(now_s=number * 0.32, seconds=0.25, rows=8)
    assert load.late == 0
    load.note(61.0, 0.4, 8)
    assert load.late == 1
    assert load.histogram[0.28] == MIN_TICKS
    assert load.histogram[0.5] == 1


def test_refusal_names_the_setting_that_limits_conversations(checkpoint: Checkpoint, settings, ticks):
    engine = Engine(checkpoint, settings.with_values(engine={"slots": 2, "tick_share": 0.001}))
    engine.open(1, engine.parse_options({}))
    for number in range(MIN_TICKS):
        engine.tick({1: ticks[number]})
    with pytest.raises(EngineFullError, match=r"too much for another \(engine.tick_share\), try again later"):
        engine.open(2, engine.parse_options({}))
    engine.load.refusal = lambda *_: None
    engine.open(2, engine.parse_options({}))
    with pytest.raises(EngineFullError, match=r"all 2 slots hold a conversation \(engine.slots\), try again later"):
        engine.open(3, engine.parse_options({}))


def test_prefill_budget_accepts_the_first_request_and_then_only_what_fits():
    budget = PrefillBudget(100)
    assert budget.take(300)
    assert not budget.take(1)
    budget = PrefillBudget(100)
    assert [budget.take(40) for _ in range(3)] == [True, True, False]
    assert budget.take(20)


def test_long_message_does_not_delay_another_conversation(checkpoint: Checkpoint, turn_settings, ticks):
    """One client types twenty chunks and another commits in the same tick, in which the other's answer starts."""
    engine = Engine(checkpoint, turn_settings.with_values(engine={"slots": 2, "prefill_tokens": 256}))
    manual = {"detection": "manual"}
    engine.open("writer", engine.parse_options(manual))
    engine.open("speaker", engine.parse_options(manual))
    for number in range(4):
        engine.tick({"writer": ticks[number], "speaker": ticks[number]})
    message = ticks[4]._replace(controls=Controls(message="word " * 300))
    committed = ticks[4]._replace(controls=Controls(commit=True))
    outputs = engine.tick({"writer": message, "speaker": committed})
    kinds = [event.type for event in outputs["speaker"].events]
    assert "answer_started" in kinds, "expected in the tick of the commit"
    lengths, answer_tick = [], None
    for number in range(5, 40):
        before = engine.thinker_length("writer")
        output = engine.tick({"writer": ticks[number % len(ticks)], "speaker": ticks[0]})["writer"]
        lengths.append(engine.thinker_length("writer") - before)
        if any(event.type == "answer_started" for event in output.events):
            answer_tick = number
            break
    assert answer_tick, "expected an answer to the message"
    assert len(lengths) > 3, "expected several ticks of prefill"
    assert max(lengths) <= 256 + 4


def test_prompts_are_prefilled_in_batches_within_the_budget(checkpoint: Checkpoint, settings, ticks):
    """Six STARTs in one tick with different prompts: conversations are silent while their chunks exceed the budget."""
    engine = Engine(checkpoint, settings.with_values(engine={"slots": 6, "prefill_tokens": 512}))
    plain = Engine(checkpoint, settings.with_values(engine={"slots": 6}))
    prompts = {key: f"{key} " + "be kind and brief " * 8 for key in range(6)}
    for key, prompt in prompts.items():
        for one in (engine, plain):
            one.open(key, one.parse_options({"system_prompt": prompt}))
    outputs: dict[int, list[TickOutput]] = {key: [] for key in prompts}
    for number in range(6):
        for key, output in engine.tick(dict.fromkeys(prompts, ticks[number])).items():
            outputs[key].append(output)
    silent = [sum(bool((output.codes == -1).all()) for output in of_key) for of_key in outputs.values()]
    assert silent[0] < silent[-1] <= 4
    for key, of_key in outputs.items():
        first = of_key[silent[key]]
        expected = plain.tick({key: ticks[silent[key]]})[key]
        assert torch.equal(first.codes, expected.codes), "expected codes that do not depend on the chunks of the prompt"


def test_prompt_with_too_many_characters_is_refused_before_tokenization(engine: Engine):
    with pytest.raises(OptionError, match=f"expected at most {MAX_PROMPT_CHARACTERS} characters, got"):
        engine.parse_options({"system_prompt": "x" * (MAX_PROMPT_CHARACTERS + 1)})


def test_rejected_control_emits_an_event_and_the_audio_is_processed(engine: Engine, ticks):
    engine.open("a", engine.parse_options({}))
    engine.open("b", engine.parse_options({}))
    rejected = ticks[0]._replace(rejected="voice is an option of START")
    outputs = engine.tick({"a": ticks[0], "b": rejected})
    assert torch.equal(outputs["a"].codes, outputs["b"].codes)
    error = outputs["b"].events[0]
    assert (error.type, error.code) == ("error", "bad_control")
    assert error.message == "voice is an option of START"
