"""Triton's ensemble against transformers, and requests that Triton refuses."""

from __future__ import annotations

import itertools
import json
import queue
import time

import numpy as np
import pytest
import torch
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient.utils import InferenceServerException

from engine.checkpoint import Checkpoint
from engine.detokenizer import Detokenizer
from tests.conftest import IDLE_TIMEOUT_S, Served
from tests.oracle import ScaOracle, one_shot_waveform, signal_to_noise_db
from tests.sound import is_same_sound, official_stream

TICK = 5120
STARTS = 1100
ids = itertools.count(1)


@pytest.fixture(scope="module")
def triton(served: Served):
    with grpc_client.InferenceServerClient(served.triton_grpc) as client:
        yield client


def tick(client, samples: np.ndarray, sequence_id, start=False, end=False, **parameters):
    audio = grpc_client.InferInput("AUDIO_IN", [1, len(samples)], "INT16")
    audio.set_data_from_numpy(samples[None])
    return client.infer(
        "duplex",
        [audio],
        sequence_id=sequence_id,
        sequence_start=start,
        sequence_end=end,
        parameters=parameters or None,
    )


def converse(client, samples: np.ndarray, sequence_id, **options) -> tuple[np.ndarray, str]:
    ticks = len(samples) // TICK
    answers = [
        tick(
            client,
            samples[i * TICK : (i + 1) * TICK],
            sequence_id,
            start=i == 0,
            end=i == ticks - 1,
            **(options if i == 0 else {}),
        )
        for i in range(ticks)
    ]
    sound = np.concatenate([answer.as_numpy("AUDIO_OUT")[0] for answer in answers])
    return sound, "".join(answer.as_numpy("TEXT").item().decode() for answer in answers)


def test_ensemble_equals_transformers(triton, checkpoint: Checkpoint, extractor, pcm):
    """From raw samples to PCM16, against the official feature extractor and transformers' own modules."""
    samples = pcm[: 20 * TICK]
    sound, text = converse(triton, samples, next(ids), voice="aiden", system_prompt="Be brief.")

    oracle = ScaOracle(checkpoint.model, checkpoint.tokenizer, "aiden", "Be brief.")
    spoken = [oracle.tick(official) for official in official_stream(extractor, samples)]
    waveform = one_shot_waveform(checkpoint.model.code2wav, torch.cat([codes for _, codes in spoken], dim=1))

    detokenizer = Detokenizer(checkpoint.tokenizer)
    assert text == detokenizer.feed([token for tokens, _ in spoken for token in tokens])
    expected = (waveform[: len(sound)] * 32767).round()
    assert np.abs(sound - expected.numpy()).max() <= 1, "one step of PCM16: a rounding may fall either way"
    assert signal_to_noise_db(expected, torch.from_numpy(sound)) > 80, "PCM16's own noise is 83 dB below this sound"


def test_interleaved_conversations_equal_separate_ones(triton, pcm):
    first, second = pcm[: 8 * TICK], pcm[10 * TICK : 18 * TICK]
    separate = [converse(triton, samples, next(ids)) for samples in (first, second)]
    a, b = next(ids), "a conversation may have a name"
    together: list[list] = [[], []]
    for i in range(8):
        for row, (samples, key) in enumerate(((first, a), (second, b))):
            part = samples[i * TICK : (i + 1) * TICK]
            together[row].append(tick(triton, part, key, start=i == 0, end=i == 7))
    for row, (sound, text) in enumerate(separate):
        assert is_same_sound(sound, np.concatenate([answer.as_numpy("AUDIO_OUT")[0] for answer in together[row]]))
        assert text == "".join(answer.as_numpy("TEXT").item().decode() for answer in together[row])


def test_start_over_a_live_conversation_begins_a_new_one(triton, pcm):
    samples = pcm[: 4 * TICK]
    expected = converse(triton, samples, next(ids))
    used = next(ids)
    tick(triton, pcm[6 * TICK : 7 * TICK], used, start=True)
    tick(triton, pcm[7 * TICK : 8 * TICK], used)
    found = converse(triton, samples, used)
    assert is_same_sound(found[0], expected[0])
    assert found[1] == expected[1]


def test_reset_clears_the_history(triton, pcm):
    """Two conversations with different histories have equal output after a reset, and different output without one."""
    heard, now = pcm[:TICK], pcm[10 * TICK : 13 * TICK]
    silence = np.zeros(TICK, np.int16)

    def after(past: list[np.ndarray], **control) -> tuple[np.ndarray, list]:
        key = next(ids)
        for i, samples in enumerate(past):
            tick(triton, samples, key, start=i == 0)
        answers = [tick(triton, now[:TICK], key, **control)]
        answers += [tick(triton, now[TICK : 2 * TICK], key), tick(triton, now[2 * TICK :], key, end=True)]
        sound = np.concatenate([answer.as_numpy("AUDIO_OUT")[0] for answer in answers])
        return sound, json.loads(answers[0].as_numpy("EVENTS").item())

    others = [pcm[4 * TICK : 5 * TICK], pcm[5 * TICK : 6 * TICK]]
    short, long = [heard, silence], [heard, *others, silence]  # to mel_frontend, both end alike
    assert not is_same_sound(after(short)[0], after(long)[0])
    assert is_same_sound(after(short, reset=True)[0], after(long, reset=True)[0])
    assert after(short, reset=True)[1][0] == {"type": "reset", "at_ms": 0}


def test_id_reused_after_its_end_begins_a_new_conversation(triton, pcm):
    """END and the next START of one id, sent without waiting, may share a batch."""
    expected = converse(triton, pcm[:TICK], next(ids))
    key, answers = next(ids), queue.Queue()
    triton.start_stream(lambda result, error: answers.put(error or result))
    for samples in (pcm[5 * TICK : 6 * TICK], pcm[:TICK], pcm[:TICK]):
        audio = grpc_client.InferInput("AUDIO_IN", [1, TICK], "INT16")
        audio.set_data_from_numpy(samples[None])
        triton.async_stream_infer("duplex", [audio], sequence_id=key, sequence_start=True, sequence_end=True)
    answers = [answers.get(timeout=20) for _ in range(3)]
    triton.stop_stream()
    for answer in answers[1:]:
        assert np.abs(answer.as_numpy("AUDIO_OUT")[0].astype(int) - expected[0]).max() <= 1
        assert answer.as_numpy("TEXT").item().decode() == expected[1]


def test_stateful_models_have_no_model_warmup(served: Served):
    """Triton runs a warmup outside of sequences: the native backend has no states there, and the load fails."""
    with http_client.InferenceServerClient(served.triton_http) as client:
        for model in ("mel_frontend", "code2wav"):
            config = client.get_model_config(model)
            assert config["sequence_batching"]["state"]
            assert not config.get("model_warmup")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"voice": "bob"}, "voice: expected one of aiden, chelsie, ethan, got 'bob'"),
        ({"vioce": "ethan"}, "unknown option 'vioce': expected one of dialect, voice, system_prompt"),
        ({"temperature": "warm"}, "temperature: expected a number, got 'warm'"),
        ({"temperature": 99.0}, "temperature: expected a number from 0 to 5, got 99.0"),
        ({"dialect": "esperanto"}, "dialect: expected 'sca', got 'esperanto'"),
        ({"seed": -1}, f"seed: expected a whole number from 0 to {2**63 - 1}, got -1"),
        ({"system_prompt": "la " * 600}, "expected at most 512 tokens (engine.prompt_positions), got"),
    ],
)
def test_error_of_an_invalid_option_names_it_and_affects_no_other_conversation(triton, pcm, parameters, message):
    other = next(ids)
    tick(triton, pcm[:TICK], other, start=True)
    with pytest.raises(InferenceServerException) as refused:
        tick(triton, pcm[:TICK], next(ids), start=True, **parameters)
    assert message in refused.value.message()
    tick(triton, pcm[:TICK], other, end=True)


def test_option_after_the_start_is_an_event(triton, pcm):
    """An error response would leave mel_frontend a tick ahead of code2wav."""
    key = next(ids)
    tick(triton, pcm[:TICK], key, start=True)
    answer = tick(triton, pcm[:TICK], key, voice="ethan")
    (event,) = [event for event in json.loads(answer.as_numpy("EVENTS").item()) if event["type"] == "error"]
    assert event["code"] == "bad_control"
    assert "expected options on the START request" in event["message"]
    assert answer.as_numpy("AUDIO_OUT").any(), "its sound is heard and answered like any other's"
    tick(triton, pcm[:TICK], key, end=True)


def test_request_without_start_is_refused(triton, pcm):
    with pytest.raises(InferenceServerException, match="must specify the START flag"):
        tick(triton, pcm[:TICK], 10**9)


def test_request_without_conversation_is_refused(triton, pcm):
    with pytest.raises(InferenceServerException, match="must specify a non-zero or non-empty correlation ID"):
        tick(triton, pcm[:TICK], 0)


@pytest.mark.parametrize("samples", [100, 5119, 10240])
def test_tick_of_the_wrong_length_is_refused(triton, samples):
    with pytest.raises(InferenceServerException, match=rf"Expected \[-1,5120\], got \[1,{samples}\]"):
        tick(triton, np.zeros(samples, np.int16), next(ids), start=True)


def test_tick_of_the_wrong_type_is_refused(triton):
    audio = grpc_client.InferInput("AUDIO_IN", [1, TICK], "FP32")
    audio.set_data_from_numpy(np.zeros((1, TICK), np.float32))
    with pytest.raises(InferenceServerException, match="data-type is 'FP32'.*expects 'INT16'"):
        triton.infer("duplex", [audio], sequence_id=next(ids), sequence_start=True)


def wait_for_free_slots(triton, pcm: np.ndarray, slots: int) -> None:
    """Wait until conversations can begin in all slots, and end them."""
    deadline = time.monotonic() + IDLE_TIMEOUT_S + 60
    is_free = False
    while not is_free:
        begun = [next(ids) for _ in range(slots)]
        try:
            for key in begun:
                tick(triton, pcm[:TICK], key, start=True)
            is_free = True
        except InferenceServerException as error:
            if "slots hold a conversation" not in error.message() or time.monotonic() > deadline:
                raise
            begun = begun[: begun.index(key)]
            time.sleep(0.2)
        for key in begun:
            tick(triton, pcm[:TICK], key, end=True)


def test_thousand_starts_without_an_end_are_refused_and_not_queued(served: Served, triton, pcm):
    """Each START without a free slot is refused: a queued START would succeed after other conversations have idled."""
    audio = grpc_client.InferInput("AUDIO_IN", [1, TICK], "INT16")
    audio.set_data_from_numpy(pcm[None, :TICK])
    answers: queue.Queue[str] = queue.Queue()
    for _ in range(STARTS):
        triton.async_infer(
            "duplex",
            [audio],
            callback=lambda result, error: answers.put(str(error or "")),
            sequence_id=next(ids),
            sequence_start=True,
        )
    errors = [answers.get(timeout=60) for _ in range(STARTS)]
    slots = served.settings.engine.slots
    assert errors.count("") <= slots
    assert sum(f"all {slots} slots hold a conversation" in error for error in errors) == STARTS - errors.count("")
    wait_for_free_slots(triton, pcm, slots)


def test_no_free_slot_is_an_error_until_a_conversation_has_idled(served: Served, triton, pcm):
    slots = served.settings.engine.slots
    abandoned = [next(ids) for _ in range(slots)]
    for key in abandoned:
        tick(triton, pcm[:TICK], key, start=True)
    with pytest.raises(InferenceServerException, match=f"all {slots} slots hold a conversation"):
        tick(triton, pcm[:TICK], next(ids), start=True)
    wait_for_free_slots(triton, pcm, slots)
    with pytest.raises(InferenceServerException, match="must specify the START flag"):
        tick(triton, pcm[:TICK], abandoned[0])
