"""./sca talk: a WAV to the bridge, and the answer to a WAV."""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

import numpy as np
import soundfile
from rich.progress import Progress, TimeElapsedColumn
from websockets.exceptions import WebSocketException

from client.python_websocket import Answer, talk
from client.sound import SoundError, read_sound, to_pcm16
from commands.console import UserError, console, hide, load_settings
from config.secret import passwords, public_url
from config.settings import INPUT_HZ, OUTPUT_HZ


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("input", type=Path, metavar="IN.wav", help="speech to send; any rate, any number of channels")
    parser.add_argument("output", type=Path, metavar="OUT.wav", help="file for the answer; 24 kHz mono")
    parser.add_argument("--url", help="address of the bridge (default: from the settings)")
    parser.add_argument("--key", help="an API key (default: the first key of the settings)")
    parser.add_argument("--realtime", action="store_true", help="send at the pace of a microphone")


def run(arguments: argparse.Namespace) -> int:
    """Send the speech, write the answer, print its text."""
    settings = load_settings()
    url = arguments.url or f"{settings.bridge.url}/ws/pcm16"
    key = arguments.key or next(iter(settings.bridge.read_keys()), "")
    hide({key, *passwords(url)})
    if arguments.output.suffix.lower() != ".wav":
        raise UserError(f"{arguments.output} must end in .wav")
    if not arguments.output.resolve().parent.is_dir():
        raise UserError(f"{arguments.output} cannot be written: there is no folder {arguments.output.resolve().parent}")
    try:
        pcm = to_pcm16(read_sound(arguments.input))
    except SoundError as error:
        raise UserError(str(error)) from error
    begun = time.monotonic()
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("talking", total=len(pcm) / INPUT_HZ)

        def show(samples: int) -> None:
            progress.advance(task, samples / OUTPUT_HZ)

        try:
            answer: Answer = asyncio.run(talk(url, pcm.tobytes(), arguments.realtime, show, key))
        except (OSError, RuntimeError, WebSocketException) as error:
            raise UserError(f"no conversation with {public_url(url)}: {error}") from error
    soundfile.write(arguments.output, np.frombuffer(answer.pcm, np.int16), OUTPUT_HZ, subtype="PCM_16")
    seconds = len(answer.pcm) / 2 / OUTPUT_HZ
    sent, took = len(pcm) / INPUT_HZ, time.monotonic() - begun
    console.print(f"{sent:.2f} s sent, {seconds:.2f} s received in {took:.2f} s: {arguments.output}")
    print(answer.text)
    return 0
