"""The page and its connection: calls and WebSockets, a network that drops, and refusals."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import suppress

import pytest
from selenium.webdriver.common.by import By
from websockets.sync.client import connect

from tests.conftest import Served
from tests.page import SCREENSHOTS, choose, seconds, shown, state_of, talk, transport_of, wait_for, wait_for_seconds
from tests.sockets import health

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
def test_page_uses_a_websocket_if_a_call_fails(served_turns: Served, browser, what: str):
    browser.get(served_turns.http)
    browser.execute_script(WITHOUT_CALLS[what])
    talk(browser)
    wait_for_seconds(browser, "heard", 1)
    assert transport_of(browser) == "socket"
    assert health(served_turns)["conversations"] == 1
    wait_for(lambda: health(served_turns)["sockets"] == 1, "end of the call")


def test_conversation_continues_after_the_network_drops(served_turns: Served, browser):
    """The page shows the state and reconnects, until the server has closed the conversation."""
    with Network(served_turns) as network:
        browser.get(network.http)
        choose(browser, "transport", "socket")
        talk(browser)
        wait_for(lambda: seconds(browser, "said") >= 2, "sound from the microphone")
        network.disconnect()
        wait_for(lambda: state_of(browser) == "reconnecting", "notice")
        browser.save_screenshot(str(SCREENSHOTS / "reconnecting.png"))
        network.reconnect()
        wait_for(lambda: state_of(browser) == "talking", "new connection")
        heard = seconds(browser, "heard")
        wait_for_seconds(browser, "said", 4)
        wait_for(lambda: seconds(browser, "heard") > heard + 2, "voice")
        assert health(served_turns)["conversations"] == 1, "the same one"
        network.disconnect()
        wait_for(lambda: state_of(browser) == "error", "end of the attempts")
        assert shown(browser, "status") == "The server closed the conversation."


def test_page_of_another_origin_is_refused_with_the_reason(served: Served, browser):
    """A browser hides the reason of a refused WebSocket; the page requests it over HTTP."""
    evil = served.http.replace("127.0.0.1", "nobody.localhost")  # name of this machine, but another origin
    browser.get(evil)
    browser.find_element(By.ID, "talk").click()
    body = browser.find_element(By.TAG_NAME, "body")
    wait_for(lambda: body.get_attribute("data-state") == "error", "error")
    assert "has no access to this server (bridge.allowed_origins)" in browser.find_element(By.ID, "status").text


def test_full_server_is_reported(served: Served, browser, pcm):
    clients = [connect(served.websocket) for _ in range(served.settings.engine.slots)]
    try:
        for client in clients:
            assert json.loads(client.recv())["type"] == "conversation.opened"
            client.send(pcm[:5120].tobytes())
            while not isinstance(client.recv(), bytes):
                pass
        browser.get(served.http)
        browser.find_element(By.ID, "talk").click()
        body = browser.find_element(By.TAG_NAME, "body")
        wait_for(lambda: body.get_attribute("data-state") == "error", "error")
        assert "all 4 slots hold a conversation" in browser.find_element(By.ID, "status").text
        assert browser.find_element(By.ID, "talk").text == "Talk", "the next attempt"
    finally:
        for client in clients:
            client.close()


class Network:
    """Proxy between browser and bridge whose connections a test can close."""

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
        self.disconnect()
        self._listener.close()

    def disconnect(self) -> None:
        """Close every connection, and refuse new ones."""
        self._is_up = False
        for one in self._pairs:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def reconnect(self) -> None:
        self._is_up = True

    def _accept(self) -> None:
        with suppress(OSError):  # the listener is closed at the end of the test
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
        with suppress(OSError):  # one of the two sockets is closed
            while data := source.recv(65536):
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
