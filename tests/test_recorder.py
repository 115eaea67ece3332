"""The thread that writes a recording."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from frontend import recording
from frontend.recording import Recorder
from frontend.tick import TickIn, TickOut


def test_disk_that_hangs_takes_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setattr(recording, "MAX_WAITING", 5)
    recorder, hangs = Recorder(tmp_path, "1"), threading.Event()
    recorder._thread.submit(hangs.wait)

    async def ticks() -> AsyncIterator[TickIn]:
        for _ in range(50):
            yield TickIn(bytes(10_240))

    async def run() -> None:
        async for _ in recorder.ticks(ticks()):
            recorder.answered(TickOut(bytes(15_360), "", []))

    asyncio.run(run())
    assert len(recorder._writing) == 5
    assert "takes too long to write" in caplog.text
    hangs.set()
    recorder.end()
