"""./sca talk: a WAV to the bridge, the answer to a WAV."""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

import numpy as np
import soundfile
import soxr
from rich.progress import Progress, TimeElapsedColumn
from websockets.exceptions import WebSocketException

from client.python_websocket import Answer, talk
from commands.console import UserError, console, load_settings
from config.settings import INPUT_HZ, OUTPUT_HZ


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    parser.add_argument("input", type=Path, metavar="IN.wav", help="what to say; any rate, any number of channels")
    parser.add_argument("output", type=Path, metavar="OUT.wav", help="where the answer goes; 24 kHz mono")
    parser.add_argument("--url", help="the bridge's address (default: from the settings)")
    parser.add_argument("--realtime", action="store_true", help="speak at the pace of a microphone")


def run(arguments: argparse.Namespace) -> int:
    """Talks, writes the answer, prints the text."""
    settings = load_settings()
    url = arguments.url or f"ws://{settings.bridge.host}:{settings.bridge.port}/ws/pcm16"
    if not arguments.output.resolve().parent.is_dir():
        raise UserError(f"{arguments.output} cannot be written: there is no folder {arguments.output.resolve().parent}")
    pcm = read_pcm16(arguments.input)
    begun = time.monotonic()
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("talking", total=len(pcm) / INPUT_HZ)

        def show(samples: int) -> None:
            progress.advance(task, samples / OUTPUT_HZ)

        try:
            answer: Answer = asyncio.run(talk(url, pcm.tobytes(), realtime=arguments.realtime, progress=show))
        except (OSError, RuntimeError, WebSocketException) as error:
            raise UserError(f"no conversation with {url}: {error}") from error
    soundfile.write(arguments.output, np.frombuffer(answer.pcm, np.int16), OUTPUT_HZ, subtype="PCM_16")
    seconds = len(answer.pcm) / 2 / OUTPUT_HZ
    sent, took = len(pcm) / INPUT_HZ, time.monotonic() - begun
    console.print(f"{sent:.2f} s sent, {seconds:.2f} s received in {took:.2f} s: {arguments.output}")
    print(answer.text)
    return 0


def read_pcm16(path: Path) -> np.ndarray:
    """A WAV of any rate and any number of channels as int16 samples at 16 kHz. Raises `UserError`."""
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise UserError(f"{path} cannot be read as sound: {error}") from error
    mono = samples.mean(axis=1)
    if rate != INPUT_HZ:
        mono = soxr.resample(mono, rate, INPUT_HZ)
    pcm: np.ndarray = np.clip(np.round(mono * 32768.0), -32768, 32767).astype(np.int16)
    return pcm
