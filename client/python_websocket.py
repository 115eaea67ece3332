"""A conversation with the bridge over WebSocket: `python client/python_websocket.py IN.wav OUT.wav [URL]`.

IN.wav is 16-bit mono 16 kHz; OUT.wav becomes 16-bit mono 24 kHz. Needs only the package `websockets`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import struct
import sys
import wave
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

URL = "ws://127.0.0.1:8000/ws/pcm16"  # add options as the query: ?voice=ethan&seed=7
FRAME_BYTES = 3200  # 100 ms; every size is valid, the bridge divides the audio into ticks
FRAME_S = 0.1
FORMAT = "16-bit PCM, 1 channel(s), 16000 Hz"  # format of IN.wav
QUIET_S = 1.0  # duration of silence after the input that ends the conversation


@dataclass
class Answer:
    """Audio, text and events received from the bridge."""

    pcm: bytearray = field(default_factory=bytearray)  # 24 kHz mono
    text: str = ""
    events: list[dict[str, object]] = field(default_factory=list)
    takes_turns: bool = False  # true if the answer starts after the user's turn, not during it
    speakers: set[str] = field(default_factory=set)  # current speakers: user, assistant
    tick_s: float = 0.0
    ticks: int = 0  # number of ticks received; their audio does not measure time, since the bridge may skip silence

    def note(self, event: dict[str, Any]) -> None:
        """Record an event; raise `RuntimeError` if it is an error."""
        self.events.append(event)
        kind = event["type"]
        if kind == "error":
            raise RuntimeError(event["message"])
        if kind == "conversation.opened":
            self.takes_turns, self.tick_s = event["dialect"] == "turn", event["tick_ms"] / 1000
        elif kind == "text":
            self.text += event["text"]
        elif kind == "speech_started":
            self.speakers.add("user")
        elif kind == "speech_stopped":
            self.speakers.discard("user")
        elif kind == "answer_started":
            self.speakers.add("assistant")
        elif kind in ("answer_done", "interrupted"):
            self.speakers.discard("assistant")


def is_near(url: str) -> bool:
    """Return whether the host is this machine or in its network: a private address, or a name without a domain."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith(".localhost")


async def talk(
    url: str, pcm: bytes, realtime: bool = False, progress: Callable[[int], None] = lambda _: None, key: str = ""
) -> Answer:
    """Send `pcm` (16 kHz) and return the answer; `progress` is called with the number of samples of each tick received.

    `key` is an API key, if the bridge requires one. Raises `RuntimeError` on an error.
    """
    answer = Answer()
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    proxy: Literal[True] | None = None if is_near(url) else True  # True: the proxy of the environment
    async with connect(url, max_size=None, additional_headers=headers, proxy=proxy) as socket:
        answer.note(json.loads(await socket.recv()))  # conversation.opened, or an error
        await asyncio.gather(_send(socket, pcm, realtime, answer), _receive(socket, progress, answer))
    return answer


async def _send(socket: ClientConnection, pcm: bytes, realtime: bool, answer: Answer) -> None:
    sent = 0
    try:
        for start in range(0, len(pcm), FRAME_BYTES):
            await socket.send(pcm[start : start + FRAME_BYTES])
            sent += FRAME_BYTES
            if realtime:
                await asyncio.sleep(FRAME_S)
        while answer.takes_turns:  # the answer arrives while the microphone sends silence
            received_s, sent_s = answer.ticks * answer.tick_s, sent / 32000
            if received_s > len(pcm) / 32000 + QUIET_S and not answer.speakers:
                break
            if sent_s - received_s > QUIET_S:
                await asyncio.sleep(0.01)
                continue
            await socket.send(bytes(FRAME_BYTES))
            sent += FRAME_BYTES
            await asyncio.sleep(FRAME_S if realtime else 0)
        await socket.send(json.dumps({"type": "end"}))
    except ConnectionClosed:
        return  # the bridge has sent an error event, which _receive raises


async def _messages(socket: ClientConnection) -> AsyncIterator[str | bytes]:
    with contextlib.suppress(ConnectionClosed):  # _receive checks the close code
        while True:
            yield await socket.recv()


async def _receive(socket: ClientConnection, progress: Callable[[int], None], answer: Answer) -> None:
    async for message in _messages(socket):
        if isinstance(message, bytes):
            answer.pcm += message
            answer.ticks += 1
            progress(len(message) // 2)
        else:
            answer.note(json.loads(message))
    if socket.close_code != 1000:
        raise RuntimeError(f"the bridge closed the conversation with code {socket.close_code}")


def read_wav(path: str) -> bytes:
    """Return the samples of a WAV; raise `ValueError` if it is not 16-bit mono 16 kHz.

    Programs that write to a pipe leave 0 or the largest number as the size of the samples, which then reach to the end.
    """
    with open(path, "rb") as file:
        content = file.read()
    if content[:4] not in (b"RIFF", b"RF64") or content[8:12] != b"WAVE":
        raise ValueError("it is empty" if not content else "it is no WAV")
    at, found = 12, "no format"
    while at + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, at)
        at += 8
        if name == b"fmt " and at + max(size, 16) <= len(content):
            kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", content, at)
            if kind == 0xFFFE and size >= 26:  # WAVE_FORMAT_EXTENSIBLE has the format in its first subformat bytes
                (kind,) = struct.unpack_from("<H", content, at + 24)
            found = f"{bits}-bit {'PCM' if kind == 1 else f'format {kind}'}, {channels} channel(s), {rate} Hz"
        elif name == b"data":
            if found != FORMAT:
                break
            is_streamed = size == 0 and content[at : at + 4] != b"LIST"
            pcm = content[at:] if is_streamed else content[at : at + size]
            if len(pcm) < 2:
                raise ValueError("it has no samples")
            return pcm[: len(pcm) // 2 * 2]
        at += size + size % 2
    else:
        raise ValueError("it has no samples")
    raise ValueError(
        f"expected {FORMAT}, got {found}; convert it: ffmpeg -i FILE -ac 1 -ar 16000 -c:a pcm_s16le IN.wav"
    )


def main() -> None:
    """Read IN.wav, hold the conversation, write OUT.wav, print the text."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        pcm = read_wav(sys.argv[1])
    except (OSError, ValueError) as error:
        sys.exit(f"{sys.argv[1]} cannot be used: {error}")
    answer = asyncio.run(talk(sys.argv[3] if len(sys.argv) > 3 else URL, pcm))
    with wave.open(sys.argv[2], "wb") as output:
        output.setparams((1, 2, 24000, 0, "NONE", ""))
        output.writeframes(answer.pcm)
    print(answer.text)


if __name__ == "__main__":
    main()
