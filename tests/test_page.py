"""The page in a real browser: a conversation with one button, turns, push to talk, mute."""

from __future__ import annotations

import numpy as np
import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from config.settings import INPUT_HZ
from tests.conftest import Served
from tests.page import (
    SCREENSHOTS,
    choose,
    complaints,
    entries,
    number,
    seconds,
    shown,
    state_of,
    talk,
    transport_of,
    wait_for,
    wait_for_seconds,
)
from tests.sockets import health

TALK_S = 6
LATENCIES = ("network", "tick", "buffer", "latency")

# Recorder of the loudspeaker: measures every AudioWorkletNode that the page connects to a destination.
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
SUMMARY = "return [window.recorder.summary(), document.getElementById('heard').textContent]"


def test_one_button_begins_a_conversation(served: Served, browser):
    browser.get(served.http)
    assert state_of(browser) == "idle"
    browser.execute_script(RECORDER)
    talk(browser)
    wait_for(lambda: seconds(browser, "said") >= TALK_S, "sound from the microphone")
    text = shown(browser, "text")
    browser.save_screenshot(str(SCREENSHOTS / "talking.png"))
    assert text.strip(), "the text comes while the voice plays"
    wait_for(lambda: seconds(browser, "heard") >= TALK_S, "voice for as long as the microphone")
    assert seconds(browser, "heard") <= seconds(browser, "said")
    assert number(shown(browser, "latency")) > 0
    assert number(shown(browser, "gaps")) >= 0

    recorded, heard = browser.execute_script(SUMMARY)  # both values are read in one script call
    assert recorded["seconds"] == pytest.approx(number(heard), abs=1.0)
    assert 0.03 < recorded["level"] < 0.5, "neither silent nor clipped"

    browser.find_element(By.ID, "reset").click()
    wait_for(lambda: shown(browser, "text") != text, "new text after the reset")
    browser.find_element(By.ID, "talk").click()
    assert state_of(browser) == "idle"
    browser.save_screenshot(str(SCREENSHOTS / "stopped.png"))
    assert [words for words in complaints(browser) if "ScriptProcessorNode" not in words] == []  # RECORDER's warning


@pytest.mark.parametrize("transport", ["call", "socket"])
def test_page_shows_who_speaks(served_turns: Served, browser, transport: str):
    """The microphone repeats a question; the answers begin in its pauses."""
    browser.get(served_turns.http)
    choose(browser, "transport", transport)
    body = browser.find_element(By.TAG_NAME, "body")

    def speaking() -> str:
        return body.get_attribute("data-speaking")

    talk(browser)
    status = browser.find_element(By.ID, "status")
    wait_for(lambda: "user" in speaking(), "speech")
    browser.save_screenshot(str(SCREENSHOTS / "you_speak.png"))
    assert status.text in ("You speak.", "Both speak.")
    browser.find_element(By.ID, "message").send_keys("Hello, what can you do?\n")
    wait_for(lambda: any(text.strip() for text in entries(browser, "assistant")), "text of an answer")
    wait_for(lambda: all(number(shown(browser, name).replace("–", "-1")) > 0 for name in LATENCIES), "latency")
    browser.save_screenshot(str(SCREENSHOTS / f"it_speaks_{transport}.png"))
    assert transport_of(browser) == transport
    typed = browser.find_element(By.CSS_SELECTOR, "#text [data-who=user]:not([data-spoken]) span")
    assert typed.text == "Hello, what can you do?"
    browser.find_element(By.ID, "talk").click()
    assert state_of(browser) == "idle"
    wait_for(lambda: health(served_turns)["conversations"] == 0, "end of the conversation")
    assert complaints(browser) == []


@pytest.mark.parametrize("transport", ["call", "socket"])
def test_button_and_space_bar_push_to_talk(served_turns: Served, browser, transport: str):
    """Speech while the button is pressed is the turn; the microphone is silent before and after it."""
    browser.get(served_turns.http)
    choose(browser, "mode", "push")
    choose(browser, "transport", transport)
    talk(browser)
    assert not browser.find_element(By.ID, "mode").is_enabled(), "a choice for the next conversation"
    wait_for(lambda: seconds(browser, "said") >= 4, "sound from the microphone")
    assert entries(browser, "user") == []
    by_button = ActionChains(browser).click_and_hold(browser.find_element(By.ID, "hold")).pause(2.5).release()
    by_space_bar = ActionChains(browser).key_down(Keys.SPACE).pause(2.5).key_up(Keys.SPACE)
    for turns, hold in enumerate((by_button, by_space_bar), 1):
        hold.perform()
        wait_for(lambda: len([t for t in entries(browser, "assistant") if t.strip()]) == turns, "answer")  # noqa: B023
    spoken = entries(browser, "user")
    assert len(spoken) == 2
    assert all(2 < float(words.split()[2]) < seconds(browser, "said") - 4 for words in spoken), spoken
    browser.save_screenshot(str(SCREENSHOTS / "push_to_talk.png"))
    assert complaints(browser) == []


def test_mute_sends_silence(served_turns: Served, open_browser, pcm: np.ndarray):
    """The clock advances, and no turn begins."""
    browser = open_browser(pcm[: 2 * INPUT_HZ])  # microphone that repeats two seconds of speech and PAUSE_S of silence
    browser.get(served_turns.http)
    talk(browser)
    browser.find_element(By.TAG_NAME, "body").send_keys("m")
    mute = browser.find_element(By.ID, "mute")
    assert mute.get_attribute("aria-pressed") == "true"
    assert mute.text == "Unmute"
    wait_for_seconds(browser, "said", 2)
    turns = len(entries(browser, "user"))
    wait_for_seconds(browser, "said", 6)  # longer than a repetition
    assert len(entries(browser, "user")) == turns
    mute.click()
    wait_for(lambda: len(entries(browser, "user")) > turns, "speech")


def test_unplugged_microphone_is_reported_and_the_clock_advances(served_turns: Served, browser):
    browser.get(served_turns.http)
    browser.execute_script(
        "const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);"
        "navigator.mediaDevices.getUserMedia = async (what) => (window.microphone = await open(what));"
    )
    talk(browser)
    browser.execute_script(
        "const [track] = window.microphone.getTracks(); track.stop(); track.dispatchEvent(new Event('ended'));"
    )
    wait_for(lambda: "The microphone is gone" in shown(browser, "text"), "complaint")
    wait_for_seconds(browser, "said", 2)
    assert state_of(browser) == "talking"


def test_reset_over_a_call_clears_the_conversation(served_turns: Served, browser):
    browser.get(served_turns.http)
    talk(browser)
    browser.find_element(By.TAG_NAME, "body").send_keys("m")
    for _ in range(2):
        browser.find_element(By.ID, "message").send_keys("Hello, what can you do?\n")
        wait_for(lambda: entries(browser, "assistant"), "answer")
        browser.find_element(By.ID, "reset").click()
        wait_for(lambda: shown(browser, "text") == "", "empty page")
    assert transport_of(browser) == "call"
    assert complaints(browser) == []


def test_missing_microphone_is_reported(served: Served, open_browser):
    browser = open_browser(None)
    browser.get(served.http)
    browser.find_element(By.ID, "talk").click()
    wait_for(lambda: state_of(browser) == "error", "error")
    assert shown(browser, "status") == "There is no microphone."
    assert browser.find_element(By.ID, "talk").text == "Talk", "the next attempt"


def test_chosen_voice_and_instructions_are_kept(served: Served, browser):
    browser.get(served.http)
    browser.find_element(By.TAG_NAME, "summary").click()
    wait_for(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#voice option")) > 1, "voices")
    browser.find_element(By.CSS_SELECTOR, "#voice option:last-child").click()
    chosen = browser.find_element(By.ID, "voice").get_attribute("value")
    browser.find_element(By.ID, "instructions").send_keys("Be brief.")
    talk(browser)
    wait_for(lambda: seconds(browser, "heard") >= 1, "voice")
    assert complaints(browser) == []
    assert entries(browser, "note") == [], "the engine took both"
    browser.refresh()
    wait_for(lambda: browser.find_element(By.ID, "voice").get_attribute("value") == chosen, "kept voice")
    assert browser.find_element(By.ID, "instructions").get_attribute("value") == "Be brief."
