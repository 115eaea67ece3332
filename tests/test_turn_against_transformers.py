"""Answers in the dialect `turn` equal those of `generate()` on a prompt of the whole history."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from contract.controls import Controls
from engine.checkpoint import Checkpoint
from engine.engine import Engine
from export.code2wav import DELAY_SAMPLES, Code2Wav
from export.mel_frontend import MelFrontend
from tests.oracle import signal_to_noise_db
from tests.turn_oracle import OracleAnswer, TurnOracle
from tests.turns import TICK, Call, ReceivedAnswer, Script, User, play, play_together, silence

SEEDS = range(20)
INTERRUPTED = 7  # seed of the conversation with an interruption
TYPED = ("What is the weather like?", "말해 줘.", "And then?\nReally 100%?")
PROMPTS = ("", "", "You are a kind assistant.", "Answer in one sentence — 천천히.")


@pytest.fixture(scope="module")
def engine(checkpoint: Checkpoint, turn_settings) -> Engine:
    return Engine(checkpoint, turn_settings.with_values(engine={"slots": 6}))


@pytest.fixture(scope="module")
def frontend(extractor) -> MelFrontend:
    return MelFrontend(extractor, TICK)


def converse(seed: int, questions: list[np.ndarray], interruption: np.ndarray) -> tuple[Script, dict]:
    """Return the script and options of a random conversation of 1 to 4 turns.

    Turns are typed, or spoken and ended by VAD or by commits.
    """
    chance = random.Random(seed)
    manual = chance.random() < 0.5 and seed != INTERRUPTED
    options = {
        "voice": chance.choice(("ethan", "chelsie", "aiden")),
        "system_prompt": chance.choice(PROMPTS),
        "detection": "manual" if manual else "server_vad",
    }
    return script(seed, chance, manual, questions, interruption), options


def script(
    seed: int, chance: random.Random, manual: bool, questions: list[np.ndarray], interruption: np.ndarray
) -> Script:
    user = User()
    for turn in range(1 if seed == INTERRUPTED else chance.randint(1, 4)):
        if chance.random() < 0.2 and seed != INTERRUPTED:
            user.note((yield silence(), Controls(message=chance.choice(TYPED))))
        elif manual:
            yield from user.speak(some_of(chance, questions), Controls(listen=turn > 0), Controls(commit=True))
        else:
            yield from user.speak(some_of(chance, questions))
        if seed == INTERRUPTED:
            while "assistant" not in user.speakers:
                yield from user.wait(1)
            yield from user.speak(interruption)
        yield from user.until_quiet()


def some_of(chance: random.Random, questions: list[np.ndarray]) -> np.ndarray:
    """Return a random prefix of a question, at least a second and a half."""
    question = questions[chance.randrange(len(questions))]
    return question[: chance.randint(24_000, len(question))]


def oracle_answers(
    call: Call, checkpoint: Checkpoint, options: dict, limits
) -> list[tuple[ReceivedAnswer, OracleAnswer]]:
    """Return each answer of a call with the answer of `generate()` to the history of the engine's earlier answers."""
    oracle = TurnOracle(checkpoint, options["voice"], options["system_prompt"])
    pairs = []
    for received in call.answers:
        oracle.add_user_turn(call.sound(received), received.typed)
        if received.tokens != [checkpoint.tokenizer.eos_token_id]:  # transformers fails on an empty answer
            pairs.append((received, oracle.answer(limits.answer_tokens, limits.answer_frames)))
        oracle.add_answer(received.kept)
    return pairs


@torch.no_grad()
def streamed(code2wav: Code2Wav, codes: torch.Tensor) -> torch.Tensor:
    """Decode an answer's codes tick by tick; return the waveform without the stream's delay."""
    length = codes.shape[1]
    padded = torch.cat([codes, torch.full((16, -length % 4 + 4), -1)], dim=1)
    states, waveform = code2wav.zero_states(1), []
    for start in range(0, padded.shape[1], 4):
        part, *states = code2wav.waveform(padded[None, :, start : start + 4], torch.zeros(1, 1), *states)
        waveform.append(part[0])
    sound = torch.cat(waveform)
    assert not sound[:DELAY_SAMPLES].any()
    assert not sound[length * 1920 :].any(), "expected silence after the last sample of the answer"
    return sound[DELAY_SAMPLES : length * 1920]


@pytest.fixture(scope="module")
def alone(engine: Engine, frontend: MelFrontend, questions, interruption) -> dict[int, Call]:
    calls = {}
    for seed in SEEDS:
        conversation, options = converse(seed, questions, interruption)
        calls[seed] = play(Call(engine, seed, frontend, conversation, **options))
        engine.close(seed)
    return calls


def test_every_answer_equals_generate(alone, checkpoint: Checkpoint, turn_settings, questions, interruption):
    code2wav = Code2Wav(checkpoint.model.code2wav, 4)
    complete = interrupted = later = spoken_turns = typed_turns = 0
    for seed, call in alone.items():
        _, options = converse(seed, questions, interruption)
        for index, (received, expected) in enumerate(oracle_answers(call, checkpoint, options, turn_settings.turn)):
            codes = torch.cat(received.codes, dim=1)
            where = f"conversation {seed}, answer {index}"
            later += index > 0
            spoken_turns += received.audio_ms is not None
            typed_turns += bool(received.typed)
            if received.end == "interrupted":
                assert received.tokens == expected.tokens[: len(received.tokens)], where
                assert torch.equal(codes, expected.codes[:, : codes.shape[1]]), where
                assert len(received.kept) < len(received.tokens)
                interrupted += 1
                continue
            assert received.tokens == expected.tokens, where
            assert torch.equal(codes, expected.codes), where
            assert signal_to_noise_db(expected.waveform, streamed(code2wav, codes)) > 90, where
            complete += 1
    assert complete > 30
    assert interrupted == 1
    assert later > 15
    assert spoken_turns > 25
    assert typed_turns > 3


def test_answers_of_this_module_end_at_end_tokens_and_at_limits(alone, checkpoint: Checkpoint, turn_settings):
    """The comparison with `generate()` covers both ways to end an answer."""
    answers = [received for call in alone.values() for received in call.answers if received.end == "answer_done"]
    end, limits = checkpoint.tokenizer.eos_token_id, turn_settings.turn
    frames = [torch.cat(received.codes, dim=1).shape[1] for received in answers]
    assert any(received.tokens[-1] == end for received in answers)
    assert any(received.tokens[-1] != end and len(received.tokens) == limits.answer_tokens for received in answers)
    assert any(0 < count < limits.answer_frames - 1 for count in frames)
    assert any(count == limits.answer_frames - 1 for count in frames)
    assert max(frames) <= limits.answer_frames - 1


def test_conversation_in_a_changing_batch_equals_itself_alone(alone, engine: Engine, frontend, questions, interruption):
    calls: dict[int, Call] = {}

    def begin(seed: int) -> Call:
        conversation, options = converse(seed, questions, interruption)
        calls[seed] = Call(engine, seed, frontend, conversation, **options)
        return calls[seed]

    play_together(engine, {seed: lambda seed=seed: begin(seed) for seed in SEEDS}, 6, random.Random(1))
    assert engine.open_conversations == 0
    for seed in SEEDS:
        assert len(calls[seed].spoken) == len(alone[seed].spoken), seed
        for tick, (one, other) in enumerate(zip(calls[seed].spoken, alone[seed].spoken, strict=True)):
            assert torch.equal(one.codes, other.codes), f"conversation {seed}, tick {tick}"
            assert (one.tokens, one.text, one.events) == (other.tokens, other.text, other.events)


def test_turn_that_starts_and_ends_within_a_tick_equals_generate(
    engine: Engine, frontend, checkpoint: Checkpoint, turn_settings, questions
):
    def script() -> Script:
        user = User()
        yield from user.speak(questions[1][: 2 * TICK])
        yield from user.speak(questions[1][2 * TICK : 10 * TICK], Controls(listen=130), Controls(commit=70))
        yield from user.until_quiet()

    options = {"voice": "ethan", "system_prompt": "", "detection": "manual"}
    call = play(Call(engine, "within", frontend, script(), **options))
    engine.close("within")
    ((received, expected),) = oracle_answers(call, checkpoint, options, turn_settings.turn)
    assert received.audio_ms == (2 * 320 + 130, 9 * 320 + 70)
    assert received.tokens == expected.tokens
    assert torch.equal(torch.cat(received.codes, dim=1), expected.codes)
