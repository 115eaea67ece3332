"""The quality benchmark: audio with known faults, and the default checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.quality import Recording, bench_quality, turns, write_outputs
from benchmarks.quality_cases import INTERRUPTION, OTHER, PAUSE, TURN, Case, QualityError, make_cases, read_cases
from benchmarks.quality_report import show, write_page
from benchmarks.sound_quality import answers_in, sound_quality
from config.settings import INPUT_HZ, OUTPUT_HZ
from tests.conftest import Served

TICK_S = 0.32
TICK = round(TICK_S * OUTPUT_HZ)


def tone(seconds: float) -> np.ndarray:
    samples = np.arange(round(seconds * OUTPUT_HZ)) / OUTPUT_HZ
    return (8000 * np.sin(2 * np.pi * 211 * samples)).astype(np.int16)


def quiet(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * OUTPUT_HZ), np.int16)


def recording(task: str, audio: np.ndarray, begin_s: float, end_s: float, late_s: float = 0.0) -> Recording:
    """Return a conversation whose ticks arrive `late_s` after they have been spoken."""
    ticks = [audio[start : start + TICK] for start in range(0, len(audio), TICK)]
    case = Case(Path("input.wav"), task, np.zeros(len(audio) * 2 // 3, np.int16), begin_s, end_s)
    return Recording(case, ticks, [(number + 1) * TICK_S + late_s for number in range(len(ticks))], TICK_S)


def test_sound_quality_finds_seams_gaps_and_clipping():
    noise = np.random.RandomState(0).normal(0, 4000, 100 * TICK).cumsum()
    noise = ((noise - np.convolve(noise, np.ones(400) / 400, "same")) / 3).clip(-32000, 32000).astype(np.int16)
    whole = [noise[start : start + TICK] for start in range(0, len(noise), TICK)]
    fine = sound_quality([whole])
    assert fine.borders.places > 90
    assert abs(fine.borders.ratio - 1) < 4 * fine.borders.error < 1
    assert abs(fine.middles.ratio - 1) < 4 * fine.middles.error < 1
    assert fine.clipped_share == 0
    broken = [tick // 2 if number % 2 else tick + 3000 for number, tick in enumerate(whole)]
    assert sound_quality([broken]).borders.ratio > 2 * fine.borders.ratio, "each border is a step"
    assert abs(sound_quality([broken]).middles.ratio - fine.middles.ratio) < 0.5
    gapped = sound_quality([[np.concatenate([tone(1), quiet(0.4), tone(0.6)])]])
    assert gapped.answers_s == pytest.approx(2)
    assert gapped.silent_share == pytest.approx(0.2)
    assert gapped.longest_gap_s == pytest.approx(0.4)
    assert sound_quality([[np.full(1000, 32767, np.int16), np.zeros(1000, np.int16)]]).clipped_share == 0.5
    assert sound_quality([[]]).borders.places == 0


def test_answers_are_loud_spans_joined_over_short_gaps():
    assert answers_in(np.concatenate([quiet(1), tone(1), quiet(0.4), tone(1), quiet(1), tone(0.5)])) == [
        pytest.approx((1, 3.4)),
        pytest.approx((4.4, 4.9)),
    ]
    assert answers_in(quiet(1)) == []


def test_response_is_timed_on_both_clocks():
    sound = np.concatenate([quiet(4 * TICK_S), tone(4 * TICK_S), quiet(4 * TICK_S)])
    one = recording(TURN, sound, begin_s=1.0, end_s=2.0, late_s=0.1)
    model, arrival = turns(one, by_arrival=False), turns(one, by_arrival=True)
    assert model.took_turn
    assert model.response_s == pytest.approx(5 * TICK_S - 1.0, abs=0.02)
    assert arrival.response_s == pytest.approx(5 * TICK_S + 0.1 - 1.0, abs=0.02)
    assert not turns(recording(TURN, quiet(3.2), 1.0, 2.0), by_arrival=True).took_turn


def test_output_during_a_pause_is_detected():
    early = np.concatenate([quiet(2 * TICK_S), tone(6 * TICK_S)])
    assert turns(recording(PAUSE, early, 0.5, 0.9), by_arrival=False).kept_pause is False
    assert turns(recording(PAUSE, quiet(3.2), 0.5, 0.9), by_arrival=False).kept_pause is True


def test_interruption_is_timed_until_the_answer_stops():
    sound = np.concatenate([tone(6 * TICK_S), quiet(4 * TICK_S), tone(6 * TICK_S)])
    interrupted = turns(recording(INTERRUPTION, sound, begin_s=2.0, end_s=2.8), by_arrival=False)
    assert interrupted.overlapped
    assert interrupted.stop_s == pytest.approx(7 * TICK_S - 2.0, abs=0.02)
    assert interrupted.response_s == pytest.approx(11 * TICK_S - 2.8, abs=0.02)
    assert interrupted.took_turn
    silent = turns(recording(INTERRUPTION, np.concatenate([tone(TICK_S), quiet(4)]), 2.0, 2.8), by_arrival=False)
    assert (silent.overlapped, silent.stop_s, silent.response_s, silent.took_turn) == (False, None, None, False)


def test_folders_of_both_versions_are_read_and_errors_name_the_file(tmp_path):
    make_cases(tmp_path)
    cases = read_cases(tmp_path)
    assert {task: sum(case.task == task for case in cases) for task in (PAUSE, TURN, INTERRUPTION)} == {
        PAUSE: 8, TURN: 8, INTERRUPTION: 8,
    }  # fmt: skip
    for case in cases:
        assert 0.3 < case.begin_s < case.end_s < case.seconds
    newer = tmp_path / "v1_5" / "1"
    newer.mkdir(parents=True)
    for name in ("input.wav", "clean_input.wav"):
        soundfile.write(newer / name, np.zeros(48_000), 48_000)
    (newer / "metadata.json").write_text('{"timestamps": [0.25, 0.75]}')
    found = {case.file.name: case for case in read_cases(newer)}
    assert (found["input.wav"].task, found["input.wav"].begin_s) == (INTERRUPTION, 0.25)
    assert found["clean_input.wav"].task == OTHER
    assert found["clean_input.wav"].output(".json").name == "clean_output.json"
    (newer / "metadata.json").write_text("{}")
    with pytest.raises(QualityError, match=r"input\.wav and its metadata\.json cannot be read: KeyError"):
        read_cases(newer)
    with pytest.raises(QualityError, match=r"expected FOLDER/ID/input\.wav, got .*none without an input\.wav"):
        read_cases(tmp_path / "none")


def test_default_checkpoint_takes_turns(served_barista: Served, tmp_path):
    make_cases(tmp_path)
    cases = [case for case in read_cases(tmp_path) if case.file.parent.name in ("1", "2")]
    ((load, conversations),) = bench_quality(served_barista.settings, cases, [3])
    for measured in (load.model, load.arrival):
        assert [each.took_turn for each in measured if each.task == TURN] == [True, True]
        assert [each.kept_pause for each in measured if each.task == PAUSE] == [True, True], "0.3 and 0.4 s"
        assert all(0.4 < each.response_s < 2 for each in measured if each.response_s is not None)
    assert load.sound.answers_s > 5
    assert load.sound.borders.places > 10
    write_outputs(conversations)
    for case in cases:
        sound, rate = soundfile.read(case.output(".wav"), dtype="int16")
        assert len(sound) / rate == pytest.approx(len(case.pcm) / INPUT_HZ, abs=1e-3)
        transcript = json.loads(case.output(".json").read_text())
        assert transcript["text"] == " ".join(chunk["text"] for chunk in transcript["chunks"])
        assert bool(transcript["chunks"]) == (case.task != PAUSE)
        after_s = case.end_s if case.task == INTERRUPTION else case.begin_s
        assert all(after_s <= chunk["timestamp"][0] < chunk["timestamp"][1] for chunk in transcript["chunks"])
    page = write_page([load], conversations, tmp_path / "page").read_text()
    assert "pauses kept" in page
    assert (tmp_path / "page" / "quality.png").stat().st_size > 20_000
    assert len(show([load])) == 2
