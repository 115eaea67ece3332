"""The page in a real browser, with a WAV as its microphone."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from tests.conftest import ROOT, Served

TALK_S = 6
SCREENSHOTS = ROOT / "build" / "test" / "screenshots"


@pytest.fixture
def browser(tmp_path: Path, pcm: np.ndarray):
    microphone = tmp_path / "microphone.wav"
    pause = np.zeros(3 * 16000, np.int16)  # the WAV is played again and again
    soundfile.write(microphone, np.concatenate([pcm, pause]), 16000, subtype="PCM_16")
    options = Options()
    options.binary_location = "/usr/bin/chromium"
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--autoplay-policy=no-user-gesture-required",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=900,800",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


def number(text: str) -> float:
    return float(text.split()[0])


def wait_for(condition, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(0.05)


def test_one_button_and_a_voice_comes_back(served: Served, browser):
    browser.get(served.http)

    def shown(name: str) -> str:
        return browser.find_element(By.ID, name).text

    def state() -> str:
        return browser.find_element(By.TAG_NAME, "body").get_attribute("data-state")

    assert state() == "idle"
    browser.execute_script(RECORDER)
    browser.find_element(By.ID, "talk").click()
    wait_for(lambda: state() in ("talking", "error"), 15, "conversation")
    assert state() == "talking", shown("status")
    wait_for(lambda: number(shown("said")) >= TALK_S, 30, "sound from the microphone")
    said, heard, text = number(shown("said")), number(shown("heard")), shown("text")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(SCREENSHOTS / "talking.png"))

    assert said - 1.5 < heard <= said, "the voice plays as long as the microphone, less what is on its way"
    assert text.strip(), "the text comes as it is said"
    assert 0 < number(shown("latency")) < 2000
    assert number(shown("gaps")) <= 3, "on a busy machine the cushion grows a few times, then there are no more gaps"

    recorded = browser.execute_script("return window.recorder.summary()")
    assert recorded["seconds"] == pytest.approx(heard, abs=1.0)
    assert 0.03 < recorded["level"] < 0.5, "neither silent nor clipped"

    browser.find_element(By.ID, "reset").click()
    wait_for(lambda: shown("text") != text, 5, "new text after the reset")
    browser.find_element(By.ID, "talk").click()
    assert state() == "idle"
    browser.save_screenshot(str(SCREENSHOTS / "stopped.png"))
    complaints = [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert [complaint for complaint in complaints if "ScriptProcessorNode" not in complaint] == []  # RECORDER's own


def test_the_page_shows_who_speaks(served_turns: Served, browser):
    """The microphone asks, again and again; the answers come when it pauses."""
    browser.get(served_turns.http)
    body = browser.find_element(By.TAG_NAME, "body")

    def speaking() -> str:
        return body.get_attribute("data-speaking")

    def answers() -> list[str]:
        return [found.text for found in browser.find_elements(By.CSS_SELECTOR, "#text [data-who=assistant] span")]

    browser.find_element(By.ID, "talk").click()
    wait_for(lambda: body.get_attribute("data-state") in ("talking", "error"), 15, "conversation")
    status = browser.find_element(By.ID, "status")
    wait_for(lambda: "user" in speaking(), 20, "speech")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(SCREENSHOTS / "you_speak.png"))
    assert status.text in ("You speak.", "Both speak.")
    browser.find_element(By.ID, "message").send_keys("Hello, what can you do?\n")
    wait_for(lambda: any(text.strip() for text in answers()), 30, "text of an answer")
    browser.save_screenshot(str(SCREENSHOTS / "it_speaks.png"))
    typed = browser.find_element(By.CSS_SELECTOR, "#text [data-who=user]:not([data-spoken]) span")
    assert typed.text == "Hello, what can you do?"
    browser.find_element(By.ID, "talk").click()
    assert body.get_attribute("data-state") == "idle"
    complaints = [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert complaints == []


def test_the_page_of_another_origin_and_a_wrong_key_are_told(served: Served, browser):
    """A browser hides why a WebSocket was refused; the page asks, and says it."""
    evil = served.http.replace("127.0.0.1", "nobody.localhost")  # points here, and is not this machine's name
    browser.get(evil)
    browser.find_element(By.ID, "talk").click()
    body = browser.find_element(By.TAG_NAME, "body")
    wait_for(lambda: body.get_attribute("data-state") == "error", 15, "error")
    assert "may not talk to this server (bridge.allowed_origins)" in browser.find_element(By.ID, "status").text


def test_a_full_house_is_said_in_words(served: Served, browser, pcm):
    from websockets.sync.client import connect

    guests = [connect(served.websocket) for _ in range(served.settings.engine.slots)]
    try:
        for guest in guests:
            assert json.loads(guest.recv())["type"] == "conversation.opened"
            guest.send(pcm[:5120].tobytes())
            while not isinstance(guest.recv(), bytes):
                pass
        browser.get(served.http)
        browser.find_element(By.ID, "talk").click()
        body = browser.find_element(By.TAG_NAME, "body")
        wait_for(lambda: body.get_attribute("data-state") == "error", 15, "error")
        assert "all 4 slots hold a conversation" in browser.find_element(By.ID, "status").text
        assert browser.find_element(By.ID, "talk").text == "Talk", "one can try again"
    finally:
        for guest in guests:
            guest.close()


# Taps what the page sends to the loudspeaker: every AudioWorkletNode connected to a destination is measured too.
RECORDER = """
window.recorder = {
  samples: 0, squares: 0, rate: 0,
  summary() { return {seconds: this.samples / this.rate, level: Math.sqrt(this.squares / this.samples)}; },
};
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (target, ...rest) {
  if (target instanceof AudioDestinationNode) {
    const tap = this.context.createScriptProcessor(1024, 1, 1);
    window.recorder.rate = this.context.sampleRate;
    tap.onaudioprocess = ({inputBuffer}) => {
      const heard = inputBuffer.getChannelData(0);
      if (window.recorder.samples === 0 && !heard.some((sample) => sample !== 0)) return;
      window.recorder.samples += heard.length;
      window.recorder.squares += heard.reduce((sum, sample) => sum + sample * sample, 0);
    };
    connect.call(this, tap);
    connect.call(tap, target);
  }
  return connect.call(this, target, ...rest);
};
"""


@pytest.mark.parametrize(
    ("from_rate", "to_rate", "frequency", "loudest_db", "least_snr_db"),
    [
        (48000, 16000, 1000, -3.0, 80),
        (48000, 16000, 6500, -3.0, 80),
        (48000, 16000, 9000, -80, None),
        (44100, 16000, 3000, -3.0, 80),
        (44100, 16000, 8900, -80, None),
        (24000, 48000, 5000, -3.0, 80),
        (24000, 44100, 9000, -3.0, 80),
    ],
)
def test_the_resampler_passes_speech_and_no_alias(from_rate, to_rate, frequency, loudest_db, least_snr_db):
    found = json.loads(
        subprocess.run(
            ["node", "--input-type=module", "-e", SINE, str(from_rate), str(to_rate), str(frequency)],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        ).stdout
    )
    output = np.array(found[to_rate // 5 : -to_rate // 10])
    time_s = np.arange(len(output)) / to_rate
    basis = np.stack([np.sin(2 * np.pi * frequency * time_s), np.cos(2 * np.pi * frequency * time_s)], axis=1)
    level_db = 10 * np.log10(np.mean(output**2) + 1e-20)
    assert level_db < loudest_db + 0.1
    if least_snr_db is not None:
        fitted, *_ = np.linalg.lstsq(basis, output, rcond=None)
        assert level_db > loudest_db - 0.2
        assert 10 * np.log10(np.mean(output**2) / np.mean((output - basis @ fitted) ** 2)) > least_snr_db


# One second of a sine through the page's resampler, in the audio thread's blocks of 128.
SINE = """
import { Resampler } from "./frontend/static/resampler.js";
const [from, to, frequency] = process.argv.slice(1).map(Number);
const resampler = new Resampler(from, to);
const output = [];
for (let start = 0; start < from; start += 128) {
  const block = Float32Array.from({ length: 128 }, (_, i) => Math.sin((2 * Math.PI * frequency * (start + i)) / from));
  output.push(...resampler.process(block));
}
console.log(JSON.stringify(output));
"""
