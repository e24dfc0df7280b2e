# SPDX-License-Identifier: Apache-2.0
"""An engine that answers from a table and remembers the requests, and a proxy in front of it."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11

from novadocker import naming
from novadocker.engine_proxy import serving
from novadocker.engine_proxy.policy import Policy
from tests.unit.engine_proxy.samples import CONTAINER, EXECUTION, NAME, STORAGE, UUID

SERVER = {
    "Id": CONTAINER,
    "Name": f"/{NAME}",
    "Image": "sha256:1",
    "Config": {
        "Labels": {naming.LABEL_SCHEMA: naming.SCHEMA, naming.LABEL_UUID: UUID},
        "StopSignal": "",
    },
    "State": {"Status": "running", "Pid": 7, "StartedAt": "2026-01-01T00:00:00Z"},
    "GraphDriver": {
        "Name": "overlay2",
        "Data": {
            "UpperDir": STORAGE.upper,
            "WorkDir": STORAGE.work,
            "LowerDir": ":".join(STORAGE.lowers),
        },
    },
    "Mounts": [],
}

Connection = Callable[[socket.socket, h11.Connection], None]


@dataclass
class FakeEngine:
    """An engine; ``seen`` has the method, the target and the body of each request.

    :ivar answers: status and JSON value by the end of a path; 404 for others
    :ivar special: takes over the connection when the head of such a request has arrived
    :ivar accepted: number of connections so far
    """

    listener: socket.socket
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    special: dict[str, Connection] = field(default_factory=dict)
    seen: list[tuple[str, str, bytes]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    accepted: int = 0

    def run(self) -> None:
        """Serve until the listener is closed."""
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.accepted += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        http = h11.Connection(h11.SERVER)
        with connection, contextlib.suppress(OSError, h11.RemoteProtocolError):
            while self._answer(connection, http):
                http.start_next_cycle()

    def _answer(self, connection: socket.socket, http: h11.Connection) -> bool:
        body = b""
        request: h11.Request | None = None
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(connection.recv(65536))
            elif isinstance(event, h11.Request):
                request = event
                path = event.target.decode().partition("?")[0]
                for end, function in self.special.items():
                    if path.endswith(end):
                        self._note(event, b"")
                        function(connection, http)
                        return False
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return False
        assert request is not None
        self._note(request, body)
        missing = (404, {"message": f"No such container: {path}"})
        ends = [end for end in self.answers if path.endswith(end)]
        status, value = self.answers[max(ends, key=len)] if ends else missing
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        if status == 204:
            content = b""
        connection.sendall(
            http.send(h11.Response(status_code=status, headers=[("Api-Version", "1.41")]))
        )
        if content and request.method != b"HEAD":
            connection.sendall(http.send(h11.Data(data=content)))
        connection.sendall(http.send(h11.EndOfMessage()))
        return http.states == {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}

    def _note(self, request: h11.Request, body: bytes) -> None:
        self.headers.append({name.decode(): value.decode() for name, value in request.headers})
        self.seen.append((request.method.decode(), request.target.decode(), body))

    def requests(self) -> list[str]:
        """Return the requests that are no questions of the proxy, as "METHOD path"."""
        return [f"{method} {target}" for method, target, _ in self.seen]


@dataclass(frozen=True)
class Proxied:
    """A fake engine behind a proxy.

    :ivar path: of the proxy's socket
    """

    engine: FakeEngine
    path: Path

    @contextlib.contextmanager
    def connected(self) -> Iterator[socket.socket]:
        """Yield a connection to the proxy."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(20)
            client.connect(str(self.path))
            yield client

    def exchange(self, request: bytes) -> bytes:
        """Send bytes and no more; return all that the proxy sends in answer."""
        with self.connected() as client:
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            return received(client)


def received(client: socket.socket) -> bytes:
    """Return all that arrives until the connection is closed."""
    content = b""
    with contextlib.suppress(ConnectionError):
        while data := client.recv(65536):
            content += data
    return content


@contextlib.contextmanager
def proxied(folder: Path, policy: Policy) -> Iterator[Proxied]:
    """Run a fake engine and a proxy."""
    with contextlib.ExitStack() as opened:
        listeners = []
        for name in ("engine", "proxy"):
            listener = opened.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(folder / name))
            listener.listen(512)
            listeners.append(listener)
        engine = FakeEngine(listeners[0])
        engine.answers = {
            f"/containers/{NAME}/json": (200, SERVER),
            f"/containers/{CONTAINER}/json": (200, SERVER),
            f"/exec/{EXECUTION}/json": (200, {"ContainerID": CONTAINER, "Running": False}),
            "/version": (200, {"ApiVersion": "1.41"}),
        }
        threading.Thread(target=engine.run, daemon=True).start()
        serve = threading.Thread(
            target=_serve, args=(listeners[1], str(folder / "engine"), policy), daemon=True
        )
        serve.start()
        yield Proxied(engine, folder / "proxy")
        for listener in listeners:
            # close() does not wake accept(). A test may have closed it before.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
        serve.join(20)


def _serve(listener: socket.socket, engine: str, policy: Policy) -> None:
    with contextlib.suppress(OSError):
        serving.serve(listener, engine, policy)
