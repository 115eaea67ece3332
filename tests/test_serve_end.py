"""The end of `./sca serve`, killed or terminated, with conversations open; `test_servers.py` has Ctrl-C.

These tests come last of all that use the pair of servers: otherwise the servers would have to be started again.
"""

from __future__ import annotations

import asyncio
import signal

from websockets.sync.client import connect

from client.python_websocket import talk
from launch.triton_server import remove_orphaned_regions
from tests.pair import Pair
from tests.probes import descendants, expect_nothing_left, runs, speak, taken, wait_until

END_S = 60  # timeout of a serve command's end


def test_killed_serve_leaves_nothing_behind(running_pair: Pair, pcm):
    """Triton and its stages end; the next server removes the memory that is left."""
    server = running_pair.servers[0]
    server.restore()
    with connect(server.websocket) as client:
        speak(client, pcm)
        processes = descendants(server.process.pid)
        names = [process.name() for process in processes]
        assert sum("tritonserver" in name for name in names) == 1
        assert len(names) >= 1 + 1 + 3, "the command, Triton, and a process per stage"
        server.process.kill()
        server.process.wait(END_S)
        wait_until(lambda: not any(runs(process) for process in processes), END_S)
    remove_orphaned_regions()
    expect_nothing_left(processes, server.process.pid)


def test_terminated_serve_drains_and_leaves_nothing_behind(running_pair: Pair, pcm):
    """SIGTERM under load: each client gets the reason, the command ends with status 0."""
    server = running_pair.servers[1]
    server.restore()
    processes = descendants(server.process.pid)

    async def converse() -> str:
        try:
            await talk(server.websocket, pcm.tobytes() * 100, realtime=True)
        except RuntimeError as error:
            return str(error)
        return "no error"

    async def terminate_while_they_speak() -> list[str]:
        talks = [asyncio.create_task(converse()) for _ in range(3)]
        while taken(server) < 3:
            await asyncio.sleep(0.1)
        server.process.send_signal(signal.SIGTERM)
        return await asyncio.gather(*talks)

    for reason in asyncio.run(terminate_while_they_speak()):
        assert "1 s" in reason
        assert "bridge.drain_s" in reason
    assert server.process.wait(END_S) == 0
    assert "Traceback" not in server.log.read_text()
    expect_nothing_left(processes, server.process.pid)
