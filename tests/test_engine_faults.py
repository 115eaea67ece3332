"""One conversation's trouble is its own, a full engine says what is full, and a device that is lost is told."""

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
    """A CUDA event whose work the device finishes when it is told to."""

    finished = 0.0  # milliseconds of the device's clock
    now = 0.0

    def record(self) -> None:
        self.at = FakeEvent.now
        FakeEvent.now += 10

    def query(self) -> bool:
        return self.at <= FakeEvent.finished

    def elapsed_time(self, other: FakeEvent) -> float:
        if not (self.query() and other.query()):
            raise RuntimeError("Both events must be completed before calculating elapsed time.")
        return other.at - self.at


def test_timing_never_fails_a_tick():
    """Work that lies behind the tick's synchronisation is counted in a later reading."""
    timer = StageTimer(torch.device("cuda"), event=FakeEvent)
    for stage in ("text", "speaker"):
        with timer(stage):
            pass
    FakeEvent.finished = 10
    assert timer.read() == {"text": pytest.approx(0.01)}
    FakeEvent.finished = 100
    assert timer.read() == {"speaker": pytest.approx(0.01)}
    assert timer.read() == {}


def test_a_device_that_is_lost_is_told_and_not_asked_again(engine: Engine, ticks, monkeypatch):
    """What torch raises in every call after an illegal access."""
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


def test_memory_that_runs_out_is_not_the_end_of_the_device(engine: Engine, ticks, monkeypatch):
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
def test_a_nan_ends_its_conversation_and_no_other(checkpoint: Checkpoint, settings, ticks, dialect, model, temperature):
    """As from an overflow in half precision: it stays in the caches. The slot's next conversation is as any."""
    changed = settings.with_values(
        engine={"slots": 2, "dialect": dialect},
        turn={"detection": "manual"},
        sampling={"temperature": temperature, "text_temperature": temperature},
    )
    engine = Engine(checkpoint, changed)

    def tick(number: int, *keys: str) -> dict:
        controls = Controls(commit=number == 4) if dialect == "turn" else Controls()
        return engine.tick({key: ticks[number]._replace(controls=controls) for key in keys})

    def said_alone(key: str) -> list:
        engine.open(key, engine.parse_options({"seed": 7}))
        found = [tick(number, key)[key] for number in range(7)]
        engine.close(key)
        return [(output.tokens, output.codes.tolist()) for output in found]

    expected = said_alone("before")
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
    assert said_alone("after") == expected
    results = tick(6, "broken", "whole")
    assert "is not open" in str(results["broken"])
    assert (results["whole"].tokens, results["whole"].codes.tolist()) == expected[6]


def test_a_conversation_more_is_refused_when_ticks_have_no_time_for_it():
    load = TickLoad(tick_s=0.32, share=0.9)
    for number in range(MIN_TICKS):
        load.note(now_s=number * 0.32, seconds=0.25, rows=8)
    assert load.refusal(7.0, open_conversations=12) is None, "13 would take 271 of 288 ms"
    refusal = load.refusal(7.0, open_conversations=6)
    assert refusal.startswith("ticks of 6 conversations take 250 of their 320 ms (95% of the last 10 s), too much for")
    assert load.refusal(60.0, open_conversations=6) is None, "that was long ago"


def test_a_pause_of_the_machine_keeps_nobody_out():
    load = TickLoad(tick_s=0.32, share=0.9)
    for number in range(MIN_TICKS):
        load.note(now_s=number * 0.32, seconds=0.3 if number in (7, 12) else 0.02, rows=1)
    assert load.refusal(7.0, open_conversations=1) is None, "two ticks of 20"
    load.note(7.0, seconds=0.3, rows=1)
    assert load.refusal(7.0, open_conversations=1), "a third is no accident"


def test_ticks_are_counted_by_what_they_take():
    load = TickLoad(tick_s=0.32, share=0.9)
    for number in range(MIN_TICKS):
        load.note(now_s=number * 0.32, seconds=0.25, rows=8)
    assert load.late == 0
    load.note(61.0, 0.4, 8)
    assert load.late == 1
    assert load.histogram[0.28] == MIN_TICKS
    assert load.histogram[0.5] == 1


def test_which_of_the_two_ran_out_is_told(checkpoint: Checkpoint, settings, ticks):
    engine = Engine(checkpoint, settings.with_values(engine={"slots": 2, "tick_share": 0.001}))
    engine.open(1, engine.parse_options({}))
    for number in range(MIN_TICKS):
        engine.tick({1: ticks[number]})
    with pytest.raises(EngineFullError, match=r"too much for one more \(engine.tick_share\), try again later"):
        engine.open(2, engine.parse_options({}))
    engine.load.refusal = lambda *_: None
    engine.open(2, engine.parse_options({}))
    with pytest.raises(EngineFullError, match=r"all 2 slots hold a conversation \(engine.slots\), try again later"):
        engine.open(3, engine.parse_options({}))


def test_a_budget_lets_the_first_piece_through_and_no_more_than_fits():
    budget = PrefillBudget(100)
    assert budget.take(300)
    assert not budget.take(1)
    budget = PrefillBudget(100)
    assert [budget.take(40) for _ in range(3)] == [True, True, False]
    assert budget.take(20)


def test_a_long_message_holds_nobody_up(checkpoint: Checkpoint, turn_settings, ticks):
    """Twenty chunks of one client, and a commit of another in the same tick: the answer begins in its tick."""
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
    assert "answer_started" in kinds, "not a tick later"
    lengths, begun = [], None
    for number in range(5, 40):
        before = engine.thinker_length("writer")
        output = engine.tick({"writer": ticks[number % len(ticks)], "speaker": ticks[0]})["writer"]
        lengths.append(engine.thinker_length("writer") - before)
        if any(event.type == "answer_started" for event in output.events):
            begun = number
            break
    assert begun, "the message is answered in the end"
    assert len(lengths) > 3, "over several ticks"
    assert max(lengths) <= 256 + 4


def test_prompts_are_prefilled_together_and_within_the_budget(checkpoint: Checkpoint, settings, ticks):
    """Six STARTs at once with prompts of their own: what does not fit goes on in the next tick, in silence."""
    engine = Engine(checkpoint, settings.with_values(engine={"slots": 6, "prefill_tokens": 512}))
    plain = Engine(checkpoint, settings.with_values(engine={"slots": 6}))
    prompts = {key: f"{key} " + "be kind and brief " * 8 for key in range(6)}
    for key, prompt in prompts.items():
        for one in (engine, plain):
            one.open(key, one.parse_options({"system_prompt": prompt}))
    heard: dict[int, list[TickOutput]] = {key: [] for key in prompts}
    for number in range(6):
        for key, output in engine.tick(dict.fromkeys(prompts, ticks[number])).items():
            heard[key].append(output)
    silent = [sum(bool((output.codes == -1).all()) for output in outputs) for outputs in heard.values()]
    assert silent[0] < silent[-1] <= 4
    for key, outputs in heard.items():
        first = outputs[silent[key]]
        expected = plain.tick({key: ticks[silent[key]]})[key]
        assert torch.equal(first.codes, expected.codes), "the prompt's pieces do not change what is said"


def test_a_prompt_of_any_length_is_not_even_tokenized(engine: Engine):
    with pytest.raises(
        OptionError, match=f"expected at most {MAX_PROMPT_CHARACTERS} characters, got {MAX_PROMPT_CHARACTERS + 1}"
    ):
        engine.parse_options({"system_prompt": "x" * (MAX_PROMPT_CHARACTERS + 1)})


def test_a_rejected_control_is_an_event_and_its_sound_is_heard(engine: Engine, ticks):
    engine.open("a", engine.parse_options({}))
    engine.open("b", engine.parse_options({}))
    rejected = ticks[0]._replace(rejected="voice came in mid-conversation")
    outputs = engine.tick({"a": ticks[0], "b": rejected})
    assert torch.equal(outputs["a"].codes, outputs["b"].codes)
    error = outputs["b"].events[0]
    assert (error.type, error.code) == ("error", "bad_control")
    assert error.message == "voice came in mid-conversation"
