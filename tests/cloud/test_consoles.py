# SPDX-License-Identifier: Apache-2.0
"""Consoles, through the public API and nova-serialproxy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from openstack.connection import Connection
from websockify.websocket import WebSocket, WebSocketWantReadError

from tests.cloud.servers import Servers, fault

SECONDS = 30


class Screen(WebSocket):  # type: ignore[misc]
    """A console as a WebSocket client sees it."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._query = urlparse(url).query
        self.text = b""
        self.connect(url)
        self.socket.settimeout(SECONDS)

    def send_request(self, type: str, path: str) -> None:
        """Send the token too, which the base class omits."""
        super().send_request(type, f"{path}?{self._query}")

    def read(self) -> bytes | None:
        """Return the next data; None at the end."""
        while True:
            try:
                return self.recv()  # type: ignore[no-any-return]
            except WebSocketWantReadError:
                continue

    def wait(self, wanted: bytes) -> bytes:
        """Read until ``wanted`` appears; return all data since the last call."""
        while wanted not in self.text:
            data = self.read()
            assert data is not None, self.text
            self.text += data
        seen, self.text = self.text, b""
        return seen


def ask(demo: Connection, server: Any, protocol: str, kind: str) -> Any:
    """Request a console and return the API's answer."""
    return demo.compute.post(
        f"/servers/{server.id}/remote-consoles",
        json={"remote_console": {"protocol": protocol, "type": kind}},
        microversion="2.8",
    )


def test_consoles(
    servers: Servers, demo: Connection, image: Callable[..., str], busybox: Path
) -> None:
    command = "sh -c 'seq 1 100; exec sleep 1d'"
    name = image(busybox, os_console="shell", os_command_line=command)
    server = servers.create("console-1", image=name)
    assert server.status == "ACTIVE", fault(server)
    output = demo.compute.get_server_console_output(server, length=3)["output"]
    assert output.split() == ["99", "100"]

    for _ in range(2):
        answer = ask(demo, server, "serial", "serial")
        screen = Screen(answer.json()["remote_console"]["url"])
        screen.send(b"stty size; hostname; echo a$((1+1))b\n")
        seen = screen.wait(b"a2b")
        assert b"24 80\r\n" in seen
        assert b"console-1\r\n" in seen
        screen.close()

    screen = Screen(answer.json()["remote_console"]["url"])
    screen.send(b"echo a$((1+1))b\n")
    screen.wait(b"a2b")
    # A resize on the same host leaves the console open.
    demo.compute.resize_server(server, demo.compute.find_flavor("d1.small"))
    servers.wait(server, lambda now: now.status == "VERIFY_RESIZE")
    screen.send(b"echo c$((1+2))d\n")
    screen.wait(b"c3d")
    demo.compute.confirm_server_resize(server)
    server = servers.wait(server, lambda now: now.status == "ACTIVE")
    screen.send(b"echo e$((1+3))f\n")
    screen.wait(b"e4f")
    for protocol, kind in (("vnc", "novnc"), ("spice", "spice-html5")):
        assert ask(demo, server, protocol, kind).status_code == 400
    demo.compute.stop_server(server)
    while screen.read() is not None:
        pass
    servers.wait(server, lambda now: now.status == "SHUTOFF")
    assert ask(demo, server, "serial", "serial").status_code == 409
