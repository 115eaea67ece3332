"""The page in a real browser, and helpers that read the page; the fixture `browser` has a WAV as its microphone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from tests.browser import start_browser
from tests.conftest import ROOT

SCREENSHOTS = ROOT / "build" / "test" / "screenshots"
WAIT_S = 60  # timeout of a state of the page


@pytest.fixture
def open_browser(tmp_path: Path) -> Iterator[Callable[[np.ndarray | None], webdriver.Chrome]]:
    """Start browsers whose microphone repeats a sound; without a microphone if the sound is None."""
    started: list[webdriver.Chrome] = []

    def with_microphone(pcm: np.ndarray | None) -> webdriver.Chrome:
        started.append(start_browser(tmp_path, pcm))
        return started[-1]

    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    yield with_microphone
    for browser in started:
        browser.get("about:blank")  # leaving the page ends its conversation
        browser.quit()


@pytest.fixture
def browser(open_browser: Callable[[np.ndarray | None], webdriver.Chrome], pcm: np.ndarray) -> webdriver.Chrome:
    return open_browser(pcm)


def state_of(browser: webdriver.Chrome) -> str:
    return browser.find_element(By.TAG_NAME, "body").get_attribute("data-state")


def shown(browser: webdriver.Chrome, name: str) -> str:
    return browser.find_element(By.ID, name).text


def entries(browser: webdriver.Chrome, who: str) -> list[str]:
    script = "return [...document.querySelectorAll(`#text [data-who=${arguments[0]}] span`)].map((e) => e.innerText)"
    return browser.execute_script(script, who)


def talk(browser: webdriver.Chrome) -> None:
    """Press the button and wait until the conversation is open."""
    browser.find_element(By.ID, "talk").click()
    wait_for(lambda: state_of(browser) in ("talking", "error"), "conversation")
    assert state_of(browser) == "talking", shown(browser, "status")


def choose(browser: webdriver.Chrome, setting: str, value: str) -> None:
    """Choose a value of one of the page's settings."""
    if not browser.find_element(By.TAG_NAME, "details").get_attribute("open"):
        browser.find_element(By.TAG_NAME, "summary").click()
    browser.find_element(By.CSS_SELECTOR, f"#{setting} option[value='{value}']").click()


def transport_of(browser: webdriver.Chrome) -> str:
    """Return the transport of the page's audio."""
    return browser.find_element(By.TAG_NAME, "body").get_attribute("data-transport")


def complaints(browser: webdriver.Chrome) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


def number(text: str) -> float:
    return float(text.split()[0])


def seconds(browser: webdriver.Chrome, name: str) -> float:
    """Return a number of seconds that the page shows, `said` or `heard`."""
    return number(shown(browser, name))


def wait_for_seconds(browser: webdriver.Chrome, name: str, more: float) -> None:
    """Wait until the page shows `more` seconds of audio in addition, sent (`said`) or played (`heard`)."""
    before = seconds(browser, name)
    wait_for(lambda: seconds(browser, name) >= before + more, f"{more} s more in {name!r}")


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {WAIT_S} s"
        time.sleep(0.05)
