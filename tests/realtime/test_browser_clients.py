"""`@openai/agents-realtime`, unmodified, in a real browser; it has 6 MB, so it runs under `./sca test --long`."""

from __future__ import annotations

import base64
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soxr

from tests.browser import start_browser
from tests.conftest import BUILD, Served
from training.judges.flite import synthesize

ORDER = "Can I get a medium dark roast latte with soy milk?"
CHANGE = "Make it large."
PACKAGE = "@openai/agents-realtime@0.20.0"
BUNDLE = "package/dist/bundle/openai-realtime-agents.umd.js"
CLIENT = Path(__file__).parent / "clients" / "agents_browser.js"
ANSWER_S = 2.5  # time from an order's end until its answer plays, in seconds


@pytest.fixture(scope="module")
def bundle() -> str:
    """Return the package's bundle for browsers."""
    folder = BUILD.parent / "agents-realtime"
    folder.mkdir(parents=True, exist_ok=True)
    found = sorted(folder.glob("*.tgz"))
    if not found:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True)
        found = sorted(folder.glob("*.tgz"))
    with tarfile.open(found[0]) as archive:
        script = archive.extractfile(BUNDLE)
        assert script
        return script.read().decode()


@pytest.mark.long
@pytest.mark.parametrize("transport", ["websocket", "webrtc"])
def test_browser_speaks_twice_and_interrupts(served_barista: Served, bundle: str, tmp_path: Path, transport: str):
    order, change = synthesize(ORDER, "rms"), synthesize(CHANGE, "rms")
    microphone = [order, np.zeros(int(ANSWER_S * 16_000), np.int16), change, np.zeros(20 * 16_000, np.int16)]
    browser = start_browser(tmp_path, np.concatenate(microphone))
    try:
        browser.set_script_timeout(120)  # the microphone repeats both sentences if an interruption was not detected
        browser.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})  # the script is that of an application's page
        browser.get(served_barista.http)
        browser.execute_script(bundle + ";globalThis.OpenAIAgentsRealtime = OpenAIAgentsRealtime;")
        sentences = [base64.b64encode(soxr.resample(pcm, 16_000, 24_000)).decode() for pcm in (order, change)]
        found = browser.execute_async_script(CLIENT.read_text(), transport, *sentences)
    finally:
        browser.quit()
    assert "failed" not in found, found
    assert found["errors"] == []
    assert found["cancelled"]["status_details"]["reason"] == "turn_detected"
    answer = found["completed"]["output"][0]["content"][0]["transcript"]
    roles = [item["role"] for item in found["history"]]
    assert min(roles.count("user"), roles.count("assistant")) >= 2, "a busy machine may hear a sentence as two"
    if transport == "websocket":
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert found["interrupted"] >= 1
        assert found["played"] > 24_000 * 2
        assert "large" in answer
    else:  # the browser suppresses noise and echo: what a small model hears then, if anything, differs from run to run
        assert "response.output_audio_transcript.delta" in found["kinds"]
        assert "output_audio_buffer.cleared" in found["kinds"]
