"""Headless browser whose microphone plays a WAV."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

PAUSE_S = 3  # pause before the microphone repeats the WAV, in seconds


def start_browser(folder: Path, pcm: np.ndarray | None) -> webdriver.Chrome:
    """Start a browser whose microphone repeats `pcm` (16 kHz) and a pause; without a microphone if `pcm` is None.

    `folder` holds the profile: no other browser may use the folder at the same time.
    """
    options = Options()
    options.binary_location = "/usr/bin/chromium"
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    arguments = [
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
        f"--user-data-dir={folder / 'profile'}",
        "--window-size=900,1000",
    ]
    if pcm is not None:
        microphone = folder / "microphone.wav"
        pause = np.zeros(PAUSE_S * 16000, np.int16)
        soundfile.write(microphone, np.concatenate([pcm, pause]), 16000, subtype="PCM_16")
        arguments += ["--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={microphone}"]
    for argument in arguments:
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
