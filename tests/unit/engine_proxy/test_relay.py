# SPDX-License-Identifier: Apache-2.0
"""Requests on a real socket: what the driver's client sends passes, and bounds hold."""

import contextlib
import inspect
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from novadocker import exception, naming
from novadocker.engine_proxy import engine, relay, serving
from novadocker.engine_proxy.policy import Policy
from novadocker.linux.threads import Sparse
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.images import writer
from tests import fuzz, waiting
from tests.unit.engine_proxy.fake_engine import SERVER, Proxied, proxied, received
from tests.unit.engine_proxy.samples import CONTAINER, EXECUTION, IMAGE, NAME, SPEC, STRANGER, UUID

POLICY = Policy(devices=frozenset({"/dev/fuse"}), registry="registry.example/moves")
REPOSITORY = f"registry.example/moves/{UUID}"
STATS = {
    "cpu_stats": {"cpu_usage": {"total_usage": 1}},
    "memory_stats": {},
    "blkio_stats": {},
}
IMAGE_ANSWER = {"Id": IMAGE, "Size": 1, "RootFS": {"Layers": [IMAGE]}, "RepoTags": []}
INFO = {
    "ServerVersion": "20.10.24",
    "NCPU": 2,
    "MemTotal": 1 << 30,
    "Architecture": "x86_64",
    "DockerRootDir": "/",
    "Driver": "overlay2",
    "DriverStatus": [],
    "LiveRestoreEnabled": True,
    "Runtimes": {},
}
GET = b"GET /v1.41/info HTTP/1.1\r\nHost: x\r\n\r\n"
KILL = f"POST /v1.41/containers/{NAME}/kill?signal=KILL HTTP/1.1\r\nHost: x\r\n".encode()


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[Proxied]:
    with proxied(tmp_path, POLICY) as found:
        found.engine.answers |= {
            "/info": (200, INFO),
            "/containers/json": (200, []),
            "/containers/create": (201, {"Id": CONTAINER}),
            "/wait": (200, {"StatusCode": 3}),
            "/stats": (200, STATS),
            "/logs": (200, b"text"),
            "/exec": (201, {"Id": EXECUTION}),
            "/volumes": (200, {"Volumes": [{"Name": "a" * 64}]}),
            f"/volumes/{'a' * 64}": (200, {"Labels": {naming.LABEL_OVERLAY: "1"}}),
            "/images/json": (200, []),
            "/history": (200, []),
            "/images/create": (200, {"status": "x"}),
            "/images/load": (200, {"stream": f"Loaded image ID: {IMAGE}\n"}),
            "/push": (200, {"aux": {"Digest": IMAGE}}),
            "/tag": (201, b""),
            "/get": (200, b"archive"),
            f"/images/{IMAGE}/json": (200, IMAGE_ANSWER),
            "/distribution/r.example/web:1/json": (200, {"Descriptor": {"digest": IMAGE}}),
            f"/images/docker.io/library/x%40{IMAGE}/json": (200, IMAGE_ANSWER),
            f"/images/r.example/web%40{IMAGE}/json": (200, IMAGE_ANSWER),
            f"/images/novadocker/{UUID}:arriving/json": (200, IMAGE_ANSWER),
            "/archive": (200, b""),
            "/export": (200, b"archive"),
            "/events": (200, b""),
            **{f"/{end}": (204, b"") for end in ("start", "kill", "pause", "unpause", "rename")},
            "/update": (200, {}),
            "/resize": (200, b""),
            f"/containers/{NAME}": (204, b""),
            f"/images/{IMAGE}": (200, []),
        }
        found.engine.answers[f"/images/{IMAGE}/json"] = (
            200,
            {**IMAGE_ANSWER, "GraphDriver": {"Name": "vfs"}},
        )
        yield found


@pytest.fixture
def client(behind: Proxied) -> Engine:
    return Engine(f"unix://{behind.path}", 20, 20)


def small_image() -> Iterator[bytes]:
    digest = "c" * 64
    manifest = [{"Config": f"{digest}.json", "RepoTags": None, "Layers": [f"{digest}.tar"]}]
    files = {
        f"{digest}.tar": b"x" * 1000,
        f"{digest}.json": b"{}",
        "manifest.json": json.dumps(manifest).encode(),
    }
    for name, data in files.items():
        yield writer.header(name, len(data)) + data + writer.padding(len(data))
    yield bytes(1024)


def upgrading(connection: socket.socket, http: h11.Connection) -> None:
    """Answer like the engine's terminal: the first output arrives with the head."""
    connection.sendall(
        b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n"
        b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\nprompt"
    )
    while data := connection.recv(65536):
        connection.sendall(data.upper())


def opened(terminal: Any) -> None:
    terminal.connection.close()


REQUESTS: dict[str, Callable[[Engine], object]] = {
    "info": lambda engine: engine.info(),
    "list_containers": lambda engine: engine.list_containers(naming.SERVER_FILTER),
    "inspect_container": lambda engine: engine.inspect_container(NAME),
    "inspect_storage": lambda engine: engine.inspect_storage(CONTAINER),
    "create_container": lambda engine: engine.create_container(SPEC),
    "start_container": lambda engine: engine.start_container(NAME),
    "update_container": lambda engine: engine.update_container(NAME, SPEC.limits),
    "signal_container": lambda engine: engine.signal_container(NAME, "SIGRTMIN+3"),
    "wait_container": lambda engine: engine.wait_container(NAME, 20),
    "pause_container": lambda engine: engine.pause_container(NAME),
    "unpause_container": lambda engine: engine.unpause_container(NAME),
    "rename_container": lambda engine: engine.rename_container(NAME, f"{NAME}-away"),
    "remove_container": lambda engine: engine.remove_container(NAME),
    "remove_unused_overlays": lambda engine: engine.remove_unused_overlays(),
    "put_files": lambda engine: engine.put_files(NAME, {"/etc/motd": b"x" * 100_000}),
    "read_file": lambda engine: engine.read_file(NAME, "/etc/motd"),
    "export_container": lambda engine: list(engine.export_container(NAME)),
    "read_console": lambda engine: engine.read_console(NAME, 100),
    "has_file": lambda engine: engine.has_file(NAME, "/bin/sh"),
    "open_terminal": lambda engine: opened(engine.open_terminal(NAME, ["/bin/sh", "-l"])),
    "attach_terminal": lambda engine: opened(engine.attach_terminal(NAME)),
    "resize_terminal": lambda engine: engine.resize_terminal(
        engine.attach_terminal(NAME), rows=24, columns=80
    ),
    "terminal_process": lambda engine: engine.terminal_process(engine.open_terminal(NAME, ["sh"])),
    "read_usage": lambda engine: engine.read_usage(NAME),
    "watch_events": lambda engine: list(
        engine.watch_events(naming.SERVER_FILTER, ["start", "health_status"], 1_000_000_001, 20)
    ),
    "inspect_image": lambda engine: engine.inspect_image(f"docker.io/library/x@{IMAGE}"),
    "layer_directories": lambda engine: engine.layer_directories(IMAGE, "x"),
    "list_images": lambda engine: engine.list_images("novadocker/*"),
    "resolve_digest": lambda engine: engine.resolve_digest("r.example/web:1", "r.example", ""),
    "pull_image": lambda engine: engine.pull_image("r.example/web", IMAGE, "r.example", "", "/"),
    "push_image": lambda engine: engine.push_image(REPOSITORY, "move", "registry.example", ""),
    "unpack_layer": lambda engine: engine.unpack_layer(
        iter([b"x" * 100_000] * 3), f"novadocker/{UUID}", "arriving"
    ),
    "load_image": lambda engine: engine.load_image(small_image()),
    "save_image": lambda engine: list(engine.save_image(IMAGE)),
    "tag_image": lambda engine: engine.tag_image(IMAGE, f"novadocker/{UUID}", "0123456789ab"),
    "remove_image": lambda engine: engine.remove_image(IMAGE),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_each_request_of_the_driver_passes(behind: Proxied, client: Engine, name: str) -> None:
    behind.engine.special = {"/start": upgrading} if "terminal" in name else {}
    behind.engine.special |= {"/attach": upgrading}
    REQUESTS[name](client)


def test_the_list_has_each_request_of_the_driver() -> None:
    """A new request needs a rule in the proxy's table."""
    methods = {name for name, _ in inspect.getmembers(Engine, inspect.isfunction) if name[0] != "_"}
    assert methods - {"from_options", "claim", "release", "within"} == REQUESTS.keys()


def test_bodies_arrive_as_they_are(behind: Proxied, client: Engine) -> None:
    client.unpack_layer(iter([b"x" * 300_000, b"y"]), f"novadocker/{UUID}", "arriving")
    client.load_image(small_image())
    client.create_container(SPEC)
    bodies = {target.partition("?")[0]: body for _, target, body in behind.engine.seen}
    assert bodies["/v1.41/images/create"] == b"x" * 300_000 + b"y"
    assert bodies["/v1.41/images/load"] == b"".join(small_image())
    assert json.loads(bodies["/v1.41/containers/create"])["Image"] == IMAGE


def test_a_refusal(
    behind: Proxied, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "_refusals", Sparse(1000))
    body = json.dumps({"Image": "x", "HostConfig": {"Privileged": True}})
    request = (
        f"POST /v1.41/containers/create?name={NAME} HTTP/1.1\r\nHost: x\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    )
    with caplog.at_level(logging.WARNING, logger="novadocker"):
        for _ in range(3):
            answer = behind.exchange(request.encode())
            assert answer.startswith(b"HTTP/1.1 403 ")
    message = json.loads(answer.partition(b"\r\n\r\n")[2])["message"]
    assert message.startswith("novadocker-engine-proxy refuses the request: ")
    assert behind.engine.seen == []
    (record,) = caplog.records
    assert f"'POST /v1.41/containers/create?name={NAME}' of process " in record.getMessage()


def test_a_container_of_the_operator_s(behind: Proxied, client: Engine) -> None:
    other = {**SERVER, "Id": STRANGER, "Name": "/database"}
    behind.engine.answers[f"/containers/{STRANGER}/json"] = (200, other)
    with pytest.raises(exception.EngineError, match="novadocker-engine-proxy refuses"):
        client.remove_container(STRANGER)
    assert f"DELETE /v1.41/containers/{STRANGER}" not in " ".join(behind.engine.requests())


def test_the_labels_of_an_image_make_no_server(behind: Proxied, client: Engine) -> None:
    for name in ("database", f"nova-{UUID[::-1]}", f"{NAME}x"):
        other = {**SERVER, "Id": STRANGER, "Name": f"/{name}"}
        behind.engine.answers[f"/containers/{STRANGER}/json"] = (200, other)
        with pytest.raises(exception.EngineError):
            client.signal_container(STRANGER, "KILL")


def test_a_missing_container_is_reported_as_missing(behind: Proxied, client: Engine) -> None:
    del behind.engine.answers["/start"]
    with pytest.raises(exception.ContainerNotFound):
        client.start_container(f"nova-{UUID[::-1].replace('-', '0')[:8]}{UUID[8:]}")


def test_an_engine_that_is_away_is_no_refusal(behind: Proxied, client: Engine) -> None:
    client.info()
    behind.engine.listener.shutdown(socket.SHUT_RDWR)
    behind.engine.listener.close()
    with pytest.raises(exception.EngineUnavailable):
        client.load_image(small_image())


def test_one_connection_to_the_engine_for_many_requests(behind: Proxied, client: Engine) -> None:
    client.inspect_container(NAME)
    before = behind.engine.accepted
    for _ in range(20):
        client.inspect_container(NAME)
    assert behind.engine.accepted == before


# -- malformed requests and those with two meanings ------------------------------------------------

INNER = b"DELETE /v1.41/containers/database HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = KILL.removesuffix(b"\r\n")


@pytest.mark.parametrize(
    "request_",
    [
        # RFC 9112, 6.3: which length is valid?
        KILL
        + b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % len(INNER)
        + INNER,
        KILL + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(INNER) + INNER,
        KILL + b"Content-Length: +%d\r\n\r\n" % len(INNER) + INNER,
        KILL + b"Content-Length : %d\r\n\r\n" % len(INNER) + INNER,
        KILL + b"Content-Length: 0\r\n Transfer-Encoding: chunked\r\n\r\n" + INNER,
        KILL + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + INNER,
        KILL + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + INNER,
        KILL + b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n" + INNER,
        KILL + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcX" + INNER,
        KILL + b"\r\n" + INNER,
        KILL + b"Content-Length: %d\r\n\r\n" % len(INNER) + INNER,
        KILL.replace(b"KILL HTTP", b"KILL\rDELETE / HTTP") + b"\r\n" + INNER,
        KILL.replace(b"HTTP/1.1", b"HTTP/1.1 x") + b"\r\n" + INNER,
        KILL.replace(b"Host: x", b"X: y\nDELETE /containers/x HTTP/1.1\nHost: x") + b"\r\n",
        KILL + b"Expect: 100-continue\r\n\r\n" + INNER,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01",
        GET + INNER,
    ],
)
def test_the_engine_gets_no_second_meaning(behind: Proxied, request_: bytes) -> None:
    answer = behind.exchange(request_)
    assert not [seen for seen in behind.engine.requests() if "database" in seen or "DELETE" in seen]
    assert b" 403 " in answer or b" 400 " in answer or not answer


@fuzz.examples(100)
@given(position=st.integers(0, len(KILL + INNER)), patch=st.binary(min_size=1, max_size=8))
def test_no_change_of_a_request_reaches_another_container(
    behind: Proxied, position: int, patch: bytes
) -> None:
    good = KILL + b"\r\n" + INNER
    with fuzz.bounds():
        behind.exchange(good[:position] + patch + good[position + len(patch) :])
    for request in behind.engine.requests():
        assert NAME in request or request.startswith("GET ")


def test_a_second_request_is_judged_too(behind: Proxied) -> None:
    answer = behind.exchange(GET + GET + GET.replace(b"info", b"plugins"))
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert answer.count(b"HTTP/1.1 403 ") == 1


def test_an_upgrade_that_the_driver_does_not_ask_for(behind: Proxied) -> None:
    answer = behind.exchange(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert not {"upgrade", "connection"} & behind.engine.headers[-1].keys()
    attach = f"POST /v1.41/containers/{NAME}/attach?stream=1&stdin=1&stdout=1&stderr=1&detachKeys=a"
    assert b" 403 " in behind.exchange(f"{attach} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


# -- bounds ----------------------------------------------------------------------------------------


def test_the_head_of_a_request_has_a_deadline(
    behind: Proxied, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "_HEAD_SECONDS", 0.3)
    with behind.connected() as slow:
        slow.settimeout(0.1)
        for byte in GET[:-2] + b"X: y\r\n" * 50:
            slow.sendall(bytes([byte]))
            try:
                assert slow.recv(1) == b""
                break
            except TimeoutError:
                continue
        else:
            pytest.fail("the connection stays open")


CREATE = f"POST /v1.41/containers/create?name={NAME} HTTP/1.1\r\nHost: x\r\n"


def test_the_body_of_a_request_has_a_deadline(
    behind: Proxied, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "_BODY_SECONDS", 0.3)
    with behind.connected() as slow:
        slow.sendall(f"{CREATE}Content-Length: 10\r\n\r\n{{".encode())
        assert received(slow) == b""
    assert behind.engine.seen == []


def test_an_idle_client_is_disconnected(behind: Proxied, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "_IDLE_SECONDS", 0.3)
    with behind.connected() as idle:
        assert received(idle) == b""


def test_the_body_of_a_request_has_a_bound(behind: Proxied) -> None:
    large = f"{CREATE}Content-Length: {2 << 20}\r\n\r\n".encode() + b" " * (2 << 20)
    assert b"the body has more than" in behind.exchange(large)
    assert behind.engine.seen == []


def test_a_head_has_a_bound(behind: Proxied) -> None:
    assert behind.exchange(GET[:-2] + b"X: y\r\n" * 50_000).startswith(b"HTTP/1.1 400 ")


def test_clients_have_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serving, "_MOST_CLIENTS", 8)
    request = GET.replace(b"/v1.41/info", b"/version")
    with proxied(tmp_path, POLICY) as behind, contextlib.ExitStack() as opened_:
        clients = [opened_.enter_context(behind.connected()) for _ in range(12)]
        for client in clients:
            client.sendall(request)
        assert [client.recv(1000)[:12] for client in clients[:8]] == [b"HTTP/1.1 200"] * 8
        waiting.until(lambda: "others have to wait" in caplog.text, 20)
        for client in clients[:4]:
            client.close()
        assert [client.recv(1000)[:12] for client in clients[8:]] == [b"HTTP/1.1 200"] * 4


# -- streams ---------------------------------------------------------------------------------------


def test_nothing_is_held_back(behind: Proxied) -> None:
    """Each part of a body and of an answer passes before the next one is sent."""
    arrived, go_on = threading.Semaphore(0), threading.Semaphore(0)

    def taking(connection: socket.socket, http: h11.Connection) -> None:
        total = 0
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                http.receive_data(connection.recv(65536))
            elif isinstance(event, h11.Data):
                total += len(event.data)
                if total % 1000 == 0:
                    arrived.release()
        connection.sendall(http.send(h11.Response(status_code=200, headers=[])))
        for _ in range(3):
            connection.sendall(http.send(h11.Data(data=b"line\n")))
            assert go_on.acquire(timeout=20)
        connection.sendall(http.send(h11.EndOfMessage()))

    behind.engine.special = {"/images/create": taking}
    path = f"/v1.41/images/create?fromSrc=-&repo=novadocker/{UUID}&tag=arriving"
    with behind.connected() as client:
        client.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        for _ in range(5):
            client.sendall(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
            assert arrived.acquire(timeout=20)
        client.sendall(b"0\r\n\r\n")
        for _ in range(3):
            answer = b""
            while not answer.endswith(b"line\n\r\n"):
                answer += client.recv(1000)
            go_on.release()


def ended(behind: Proxied, path: str) -> threading.Event:
    """Return an event that is set when the proxy has closed the connection of a request."""
    closed = threading.Event()

    def hanging(connection: socket.socket, http: h11.Connection) -> None:
        while connection.recv(65536):
            pass
        closed.set()

    behind.engine.special = {path: hanging}
    return closed


def test_a_client_that_sends_no_other_request_gets_its_answer(behind: Proxied) -> None:
    with behind.connected() as client:
        client.sendall(GET)
        client.shutdown(socket.SHUT_WR)
        assert received(client).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_goes_ends_its_request(behind: Proxied) -> None:
    closed = ended(behind, "/wait")
    with behind.connected() as client:
        client.sendall(f"POST /v1.41/containers/{NAME}/wait HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        waiting.until(lambda: any("wait" in seen for seen in behind.engine.requests()), 20)
    assert closed.wait(20)


def test_a_client_that_goes_ends_the_question_before_its_request(behind: Proxied) -> None:
    closed = ended(behind, f"/containers/{NAME}/json")
    with behind.connected() as client:
        client.sendall(KILL + b"\r\n")
        waiting.until(lambda: behind.engine.seen, 20)
    assert closed.wait(20)


def test_a_container_that_hangs_is_no_engine_that_hangs(
    behind: Proxied, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_CONNECT_SECONDS", 0.2)
    ended(behind, f"/containers/{NAME}/json")
    with pytest.raises(exception.ContainerHangs):
        Engine(f"unix://{behind.path}", 1, 1).start_container(NAME)


def test_a_body_that_is_cut_off_has_no_end_for_the_engine(behind: Proxied) -> None:
    """Otherwise the engine would take a part of a layer for the whole."""
    parts: list[bytes] = []

    def keeping(connection: socket.socket, http: h11.Connection) -> None:
        while data := connection.recv(65536):
            parts.append(data)
        closed.set()

    closed = threading.Event()
    behind.engine.special = {"/images/create": keeping}
    path = f"/v1.41/images/create?fromSrc=-&repo=novadocker/{UUID}&tag=arriving"
    with behind.connected() as client:
        client.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            "5\r\nhello\r\n".encode()
        )
        waiting.until(lambda: behind.engine.seen, 20)
    assert closed.wait(20)
    assert not b"".join(parts).endswith(b"0\r\n\r\n")


def test_an_image_with_a_name_is_not_loaded(behind: Proxied, client: Engine) -> None:
    def named() -> Iterator[bytes]:
        *first, manifest, _end = small_image()
        yield from first
        body = manifest[512:].rstrip(b"\0").replace(b"null", b'["nginx:latest"]')
        yield writer.header("manifest.json", len(body)) + body + writer.padding(len(body))
        yield bytes(1024)

    with pytest.raises((exception.EngineError, exception.EngineUnavailable)):
        client.load_image(named())
    assert not [target for _, target, _ in behind.engine.seen if "load" in target]


def test_an_engine_that_answers_before_it_has_read_all(behind: Proxied, client: Engine) -> None:
    def refusing(connection: socket.socket, http: h11.Connection) -> None:
        body = b'{"message": "no space left on device"}'
        connection.sendall(
            b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )

    behind.engine.special = {"/images/create": refusing}
    with pytest.raises((exception.EngineError, exception.EngineUnavailable)) as caught:
        client.unpack_layer(iter([b"x" * 100_000] * 50), f"novadocker/{UUID}", "arriving")
    assert "no space left" in str(caught.value)


def test_a_terminal(behind: Proxied, client: Engine) -> None:
    behind.engine.special = {"/attach": upgrading}
    terminal = client.attach_terminal(NAME)
    terminal.connection.settimeout(20)
    shown = terminal.early
    while shown != b"prompt":
        shown += terminal.connection.recv(100)
    for size in (1, 500_000):
        sent = threading.Thread(target=terminal.connection.sendall, args=(b"x" * size,))
        sent.start()
        echo = b""
        while len(echo) < size:
            echo += terminal.connection.recv(65536)
        sent.join()
        assert echo == b"X" * size
    terminal.connection.close()


def test_the_output_after_the_end_of_the_input(behind: Proxied, client: Engine) -> None:
    def counting(connection: socket.socket, http: h11.Connection) -> None:
        connection.sendall(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
        total = 0
        while data := connection.recv(65536):
            total += len(data)
        connection.sendall(f"{total} bytes".encode())

    behind.engine.special = {"/attach": counting}
    terminal = client.attach_terminal(NAME)
    terminal.connection.settimeout(20)
    terminal.connection.sendall(b"x" * 1000)
    terminal.connection.shutdown(socket.SHUT_WR)
    assert received(terminal.connection) == b"1000 bytes"
    terminal.connection.close()
