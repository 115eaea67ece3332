"""The page in a real browser, with a WAV as its microphone."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.browser import start_browser
from tests.conftest import RESUME_S, ROOT, Served
from tests.test_bridge import health

TALK_S = 6
LATENCIES = ("network", "tick", "buffer", "latency")
SCREENSHOTS = ROOT / "build" / "test" / "screenshots"


@pytest.fixture
def start(tmp_path: Path):
    """Starts a browser with a sound, repeated, as its microphone; None: it has no microphone."""
    started = []

    def with_microphone(pcm: np.ndarray | None) -> webdriver.Chrome:
        started.append(start_browser(tmp_path, pcm))
        return started[-1]

    yield with_microphone
    for browser in started:
        browser.get("about:blank")  # as one who leaves the page: its conversation ends with it
        browser.quit()


@pytest.fixture
def browser(start, pcm: np.ndarray) -> webdriver.Chrome:
    return start(pcm)


def state_of(browser: webdriver.Chrome) -> str:
    return browser.find_element(By.TAG_NAME, "body").get_attribute("data-state")


def shown(browser: webdriver.Chrome, name: str) -> str:
    return browser.find_element(By.ID, name).text


def entries(browser: webdriver.Chrome, who: str) -> list[str]:
    script = "return [...document.querySelectorAll(`#text [data-who=${arguments[0]}] span`)].map((e) => e.innerText)"
    return browser.execute_script(script, who)


def talk(browser: webdriver.Chrome) -> None:
    """Presses the button and waits until the conversation is open."""
    browser.find_element(By.ID, "talk").click()
    wait_for(lambda: state_of(browser) in ("talking", "error"), 15, "conversation")
    assert state_of(browser) == "talking", shown(browser, "status")


def choose(browser: webdriver.Chrome, setting: str, value: str) -> None:
    """Makes a choice of the page's settings."""
    if not browser.find_element(By.TAG_NAME, "details").get_attribute("open"):
        browser.find_element(By.TAG_NAME, "summary").click()
    browser.find_element(By.CSS_SELECTOR, f"#{setting} option[value='{value}']").click()


def transport_of(browser: webdriver.Chrome) -> str:
    """What carries the sound of the page's conversation."""
    return browser.find_element(By.TAG_NAME, "body").get_attribute("data-transport")


def complaints(browser: webdriver.Chrome) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def number(text: str) -> float:
    return float(text.split()[0])


def wait_for(condition, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(0.05)


def test_one_button_and_a_voice_comes_back(served: Served, browser):
    browser.get(served.http)
    assert state_of(browser) == "idle"
    browser.execute_script(RECORDER)
    talk(browser)
    wait_for(lambda: number(shown(browser, "said")) >= TALK_S, 30, "sound from the microphone")
    said, heard, text = number(shown(browser, "said")), number(shown(browser, "heard")), shown(browser, "text")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(SCREENSHOTS / "talking.png"))

    assert said - 1.5 < heard <= said, "the voice plays as long as the microphone, less what is on its way"
    assert text.strip(), "the text comes as it is said"
    assert 0 < number(shown(browser, "latency")) < 2000
    gaps = number(shown(browser, "gaps"))
    assert gaps <= 3, "on a busy machine the cushion grows a few times, then there are no more gaps"

    recorded = browser.execute_script("return window.recorder.summary()")
    assert recorded["seconds"] == pytest.approx(heard, abs=1.0)
    assert 0.03 < recorded["level"] < 0.5, "neither silent nor clipped"

    browser.find_element(By.ID, "reset").click()
    wait_for(lambda: shown(browser, "text") != text, 5, "new text after the reset")
    browser.find_element(By.ID, "talk").click()
    assert state_of(browser) == "idle"
    browser.save_screenshot(str(SCREENSHOTS / "stopped.png"))
    assert [words for words in complaints(browser) if "ScriptProcessorNode" not in words] == []  # RECORDER's own


@pytest.mark.parametrize("transport", ["call", "socket"])
def test_the_page_shows_who_speaks(served_turns: Served, browser, transport: str):
    """The microphone asks, again and again; the answers come when it pauses."""
    browser.get(served_turns.http)
    choose(browser, "transport", transport)
    body = browser.find_element(By.TAG_NAME, "body")

    def speaking() -> str:
        return body.get_attribute("data-speaking")

    talk(browser)
    status = browser.find_element(By.ID, "status")
    wait_for(lambda: "user" in speaking(), 20, "speech")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(SCREENSHOTS / "you_speak.png"))
    assert status.text in ("You speak.", "Both speak.")
    browser.find_element(By.ID, "message").send_keys("Hello, what can you do?\n")
    wait_for(lambda: any(text.strip() for text in entries(browser, "assistant")), 30, "text of an answer")
    wait_for(lambda: all(number(shown(browser, name).replace("–", "-1")) > 0 for name in LATENCIES), 10, "latency")
    browser.save_screenshot(str(SCREENSHOTS / f"it_speaks_{transport}.png"))
    assert transport_of(browser) == transport
    typed = browser.find_element(By.CSS_SELECTOR, "#text [data-who=user]:not([data-spoken]) span")
    assert typed.text == "Hello, what can you do?"
    browser.find_element(By.ID, "talk").click()
    assert state_of(browser) == "idle"
    wait_for(lambda: health(served_turns)["conversations"] == 0, 5, "end of the conversation")
    assert complaints(browser) == []


@pytest.mark.parametrize("transport", ["call", "socket"])
def test_push_to_talk(served_turns: Served, browser, transport: str):
    """What is said while the button is held is the turn; before and after it the microphone is not heard."""
    browser.get(served_turns.http)
    choose(browser, "mode", "push")
    choose(browser, "transport", transport)
    talk(browser)
    assert not browser.find_element(By.ID, "mode").is_enabled(), "it is chosen before a conversation"
    wait_for(lambda: number(shown(browser, "said")) >= 4, 15, "sound from the microphone")
    assert entries(browser, "user") == []
    by_button = ActionChains(browser).click_and_hold(browser.find_element(By.ID, "hold")).pause(2.5).release()
    by_space_bar = ActionChains(browser).key_down(Keys.SPACE).pause(2.5).key_up(Keys.SPACE)
    for turns, hold in enumerate((by_button, by_space_bar), 1):
        hold.perform()
        wait_for(lambda: len([t for t in entries(browser, "assistant") if t.strip()]) == turns, 20, "answer")  # noqa: B023
    spoken = entries(browser, "user")
    assert len(spoken) == 2
    assert all(2.3 < float(words.split()[2]) < 4 for words in spoken), spoken
    browser.save_screenshot(str(SCREENSHOTS / "push_to_talk.png"))
    assert complaints(browser) == []


def test_mute(served_turns: Served, browser):
    """Time goes on, and nothing is heard."""
    browser.get(served_turns.http)
    talk(browser)
    browser.find_element(By.TAG_NAME, "body").send_keys("m")
    mute = browser.find_element(By.ID, "mute")
    assert mute.get_attribute("aria-pressed") == "true"
    assert mute.text == "Unmute"
    time.sleep(2)
    turns, said = len(entries(browser, "user")), number(shown(browser, "said"))
    time.sleep(9)  # longer than the microphone's sound
    assert len(entries(browser, "user")) == turns
    assert number(shown(browser, "said")) > said + 7
    mute.click()
    wait_for(lambda: len(entries(browser, "user")) > turns, 15, "speech")


def test_a_microphone_that_is_unplugged_is_said_in_words_and_time_goes_on(served_turns: Served, browser):
    browser.get(served_turns.http)
    browser.execute_script(
        "const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);"
        "navigator.mediaDevices.getUserMedia = async (what) => (window.microphone = await open(what));"
    )
    talk(browser)
    browser.execute_script(
        "const [track] = window.microphone.getTracks(); track.stop(); track.dispatchEvent(new Event('ended'));"
    )
    wait_for(lambda: "The microphone is gone" in shown(browser, "text"), 5, "complaint")
    said = number(shown(browser, "said"))
    wait_for(lambda: number(shown(browser, "said")) > said + 2, 10, "time")
    assert state_of(browser) == "talking"


def test_reset_over_a_call_forgets_what_was_said(served_turns: Served, browser):
    browser.get(served_turns.http)
    talk(browser)
    browser.find_element(By.TAG_NAME, "body").send_keys("m")
    for _ in range(2):
        browser.find_element(By.ID, "message").send_keys("Hello, what can you do?\n")
        wait_for(lambda: entries(browser, "assistant"), 30, "answer")
        browser.find_element(By.ID, "reset").click()
        wait_for(lambda: shown(browser, "text") == "", 5, "empty page")
    assert transport_of(browser) == "call"
    assert complaints(browser) == []


WITHOUT_CALLS = {
    "a browser without WebRTC": "delete window.RTCPeerConnection",
    "a network without UDP": """
        const { get } = Object.getOwnPropertyDescriptor(RTCPeerConnection.prototype, "localDescription");
        const set = RTCPeerConnection.prototype.setRemoteDescription;
        const cut = ({ type, sdp }) => ({ type, sdp: sdp.replace(/a=candidate.*\\r\\n/g, "") });
        Object.defineProperty(RTCPeerConnection.prototype, "localDescription", {
          get() { return cut(get.call(this)); },
        });
        RTCPeerConnection.prototype.setRemoteDescription = function (answer) {
          return set.call(this, cut(answer));
        };""",
}


@pytest.mark.parametrize("what", WITHOUT_CALLS)
def test_where_no_call_comes_about_the_page_talks_over_a_websocket(served_turns: Served, browser, what: str):
    browser.get(served_turns.http)
    browser.execute_script(WITHOUT_CALLS[what])
    talk(browser)
    wait_for(lambda: number(shown(browser, "heard")) >= 1, 15, "voice")
    assert transport_of(browser) == "socket"
    assert health(served_turns)["conversations"] == 1
    wait_for(lambda: health(served_turns)["sockets"] == 1, 5, "end of the call")


def test_a_network_that_drops(served_turns: Served, browser):
    """The page says so, calls again, and the conversation goes on with all that was said."""
    with Network(served_turns) as network:
        browser.get(network.http)
        choose(browser, "transport", "socket")
        talk(browser)
        wait_for(lambda: number(shown(browser, "said")) >= 2, 15, "sound from the microphone")
        network.cut()
        wait_for(lambda: state_of(browser) == "reconnecting", 5, "notice")
        browser.save_screenshot(str(SCREENSHOTS / "reconnecting.png"))
        time.sleep(1)
        network.mend()
        wait_for(lambda: state_of(browser) == "talking", 5, "new connection")
        said, heard = number(shown(browser, "said")), number(shown(browser, "heard"))
        wait_for(lambda: number(shown(browser, "said")) > said + 4, 15, "sound from the microphone")
        assert number(shown(browser, "heard")) > heard + 2
        assert health(served_turns)["conversations"] == 1, "the same one"
        network.cut()
        wait_for(lambda: state_of(browser) == "error", RESUME_S + 15, "end of the patience")
        assert shown(browser, "status") == "The server closed the conversation."


def test_no_microphone_is_said_in_words(served: Served, start):
    browser = start(None)
    browser.get(served.http)
    browser.find_element(By.ID, "talk").click()
    wait_for(lambda: state_of(browser) == "error", 15, "error")
    assert shown(browser, "status") == "There is no microphone."
    assert browser.find_element(By.ID, "talk").text == "Talk", "one can try again"


def test_what_a_voice_and_instructions_are_chosen_is_kept(served: Served, browser):
    browser.get(served.http)
    browser.find_element(By.TAG_NAME, "summary").click()
    wait_for(lambda: len(browser.find_elements(By.CSS_SELECTOR, "#voice option")) > 1, 5, "voices")
    browser.find_element(By.CSS_SELECTOR, "#voice option:last-child").click()
    chosen = browser.find_element(By.ID, "voice").get_attribute("value")
    browser.find_element(By.ID, "instructions").send_keys("Be brief.")
    talk(browser)
    wait_for(lambda: number(shown(browser, "heard")) >= 1, 15, "voice")
    assert complaints(browser) == []
    assert entries(browser, "note") == [], "the engine took both"
    browser.refresh()
    wait_for(lambda: browser.find_element(By.ID, "voice").get_attribute("value") == chosen, 5, "kept voice")
    assert browser.find_element(By.ID, "instructions").get_attribute("value") == "Be brief."


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


class Network:
    """Forwards connections to the bridge, until it is cut."""

    def __init__(self, served: Served):
        self._target = ("127.0.0.1", served.settings.bridge.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[socket.socket] = []
        self._is_up = True
        self.http = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Network:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._listener.close()

    def cut(self) -> None:
        """Whoever is connected is gone, and nobody new comes through."""
        self._is_up = False
        for one in self._pairs:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def mend(self) -> None:
        self._is_up = True

    def _accept(self) -> None:
        with suppress(OSError):  # it is closed at the end
            while True:
                inner, _ = self._listener.accept()
                if not self._is_up:
                    inner.close()
                    continue
                outer = socket.create_connection(self._target)
                self._pairs += [inner, outer]
                for pair in ((inner, outer), (outer, inner)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):  # one of the two has gone
            while data := source.recv(65536):
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


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
    ("from_rate", "to_rate", "frequency", "loudest_db", "min_snr_db"),
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
def test_the_resampler_passes_speech_and_no_alias(from_rate, to_rate, frequency, loudest_db, min_snr_db):
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
    if min_snr_db is not None:
        fitted, *_ = np.linalg.lstsq(basis, output, rcond=None)
        assert level_db > loudest_db - 0.2
        assert 10 * np.log10(np.mean(output**2) / np.mean((output - basis @ fitted) ** 2)) > min_snr_db


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
