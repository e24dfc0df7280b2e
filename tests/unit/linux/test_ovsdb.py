# SPDX-License-Identifier: Apache-2.0
"""The client of Open vSwitch against scripted answers; tests/engine asks a real database."""

import errno
import json
import logging
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from novadocker.linux import ovsdb

PORT = ["uuid", "11111111-0000"]
OTHER = ["uuid", "22222222-0000"]

Answer = Callable[[Any], list[Any]]
"""Returns the messages that answer a message."""


@contextmanager
def serving(path: Path, *answers: Answer) -> Iterator[list[Any]]:
    """Serve one connection after another, each by one function; yield the messages received."""
    received: list[Any] = []
    served: list[Answer] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(10)
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                served.append(answer)
                # Because a client may close without having read all, resets are expected.
                with connection, suppress(ConnectionResetError):
                    while part := connection.recv(1 << 16):
                        message = json.loads(part)
                        received.append(message)
                        for found in answer(message):
                            connection.sendall(json.dumps(found).encode())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield received
        thread.join(60)
    assert served == list(answers)


def result(value: object) -> Answer:
    return lambda message: [{"id": message["id"], "result": value, "error": None}]


def rows(*tables: list[dict[str, object]]) -> Answer:
    return result([{"rows": table} for table in tables])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db.sock"


@pytest.fixture
def connection(path: Path) -> str:
    return f"unix:{path}"


def test_queries_go_in_one_transaction(path: Path, connection: str) -> None:
    queries = (
        ovsdb.Select("Bridge", ("name",), [["name", "==", "br-int"]]),
        ovsdb.Select("Port", ("name", "qos")),
    )
    with serving(path, rows([{"name": "br-int"}], [])) as received:
        assert ovsdb.select(connection, *queries) == [[{"name": "br-int"}], []]
    (request,) = received
    assert request["method"] == "transact"
    assert request["params"] == [
        "Open_vSwitch",
        {
            "op": "select",
            "table": "Bridge",
            "where": [["name", "==", "br-int"]],
            "columns": ["name"],
        },
        {"op": "select", "table": "Port", "where": [], "columns": ["name", "qos"]},
    ]


def test_answer_of_many_parts(path: Path, connection: str) -> None:
    names = [{"name": f"täp{number}"} for number in range(20_000)]
    with serving(path, rows(names)):
        assert ovsdb.select(connection, ovsdb.Select("Port", ("name",))) == [names]


def test_echo_of_the_server_is_answered_and_notifications_are_not(
    path: Path, connection: str
) -> None:
    def probe(message: Any) -> list[Any]:
        if message.get("method") == "transact":
            return [
                {"id": None, "method": "update", "params": []},
                {"id": "echo", "method": "echo", "params": [7]},
            ]
        return [{"id": 0, "result": [{"rows": []}], "error": None}]

    with serving(path, probe) as received:
        assert ovsdb.select(connection, ovsdb.Select("Port", ("name",))) == [[]]
    assert received[1] == {"id": "echo", "result": [7], "error": None}


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {"id": 0, "error": "unknown database", "result": None},
        {"id": 0, "error": None, "result": []},
        {"id": 0, "error": None, "result": 7},
        {"id": 0, "error": None, "result": [{"error": "constraint violation"}]},
        {"id": 0, "error": None, "result": [{"rows": []}, {"error": "referential integrity"}]},
        {"id": 0, "error": None, "result": [{"count": 1}]},
        {"id": 0, "error": None, "result": [None]},
    ],
)
def test_other_answers_are_faults(path: Path, connection: str, answer: object) -> None:
    with (
        serving(path, lambda _message: [answer]),
        pytest.raises(OSError, match=r"answers|sent a malformed answer|refuses") as caught,
    ):
        ovsdb.select(connection, ovsdb.Select("Port", ("name",)))
    assert caught.value.errno == errno.EPROTO


def test_too_large_an_answer(path: Path, connection: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ovsdb, "_LARGEST_ANSWER", 100)
    monkeypatch.setattr(ovsdb, "_PART_BYTES", 30)
    with (
        serving(path, lambda _message: [{"id": 0, "result": "x" * 500}]),
        pytest.raises(OSError, match="too much"),
    ):
        ovsdb.call(connection, "echo", [])


def test_silence_is_bounded(path: Path, connection: str) -> None:
    with (
        serving(path, lambda _message: []),
        pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"),
    ):
        ovsdb.call(connection, "echo", [], seconds=0.05)


def test_connection_that_the_server_closes(path: Path, connection: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        closing = threading.Thread(target=lambda: listener.accept()[0].close())
        closing.start()
        # the request may have been sent before or after
        with pytest.raises((ConnectionResetError, BrokenPipeError), match=str(path)):
            ovsdb.call(connection, "echo", [])
        closing.join()


@pytest.mark.parametrize(
    ("connection", "fault"),
    [
        ("unix:/nonexistent/db.sock", FileNotFoundError),
        ("tcp:127.0.0.1:1", ConnectionRefusedError),
        ("tcp:127.0.0.1:port", OSError),
        ("ssl:127.0.0.1:6640", OSError),
        ("unix:relative", OSError),
        (f"unix:/{'x' * 200}", OSError),
    ],
)
def test_fault_names_the_connection(connection: str, fault: type[OSError]) -> None:
    with pytest.raises(fault, match=f"cannot be asked at {re.escape(connection)}: "):
        ovsdb.call(connection, "echo", [])


def test_connection_by_tcp() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def answer() -> None:
            with listener.accept()[0] as accepted:
                accepted.recv(4096)
                accepted.sendall(b'{"id": 0, "result": ["yes"], "error": null}')

        thread = threading.Thread(target=answer)
        thread.start()
        connection = f"tcp:127.0.0.1:{listener.getsockname()[1]}"
        assert ovsdb.call(connection, "echo", ["yes"]) == ["yes"]
        thread.join()


@pytest.mark.parametrize(
    ("connection", "expected"),
    [
        ("tcp:192.0.2.1:1234", ("192.0.2.1", 1234)),
        ("tcp:192.0.2.1", ("192.0.2.1", 6640)),
        ("tcp:[2001:db8::1]:1234", ("2001:db8::1", 1234)),
        ("tcp:[2001:db8::1]", ("2001:db8::1", 6640)),
    ],
)
def test_address_of_a_connection_by_tcp(
    connection: str, expected: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(address: tuple[str, int], timeout: float) -> None:
        asked.append((address, timeout))
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(ConnectionRefusedError):
        ovsdb.call(connection, "echo", [], seconds=3)
    ((address, timeout),) = asked
    assert address == expected
    assert 0 < timeout <= 3


@pytest.mark.parametrize(
    ("bridges", "ports", "expected"),
    [
        ([{"ports": ["set", [OTHER, PORT]]}], [{"_uuid": PORT}], True),
        # a set of one value stands for itself
        ([{"ports": PORT}], [{"_uuid": PORT}], True),
        ([{"ports": OTHER}], [{"_uuid": PORT}], False),
        ([{"ports": ["set", []]}], [{"_uuid": PORT}], False),
        ([{"ports": ["set", [OTHER, PORT]]}], [], False),
        ([], [{"_uuid": PORT}], False),
    ],
)
def test_a_bridge_has_a_port(
    path: Path,
    connection: str,
    bridges: list[dict[str, object]],
    ports: list[dict[str, object]],
    expected: bool,
) -> None:
    with serving(path, rows(bridges, ports)) as received:
        assert ovsdb.has_port(connection, "br-int", "tap1") is expected
    wanted = [operation["where"] for operation in received[0]["params"][1:]]
    assert wanted == [[["name", "==", "br-int"]], [["name", "==", "tap1"]]]


FOUND = rows([{"ports": PORT}], [{"_uuid": PORT}])


def deleted(wanted: int, applied: int) -> Answer:
    state = {"rows": [{"next_cfg": wanted, "cur_cfg": applied}]}
    return result([{"count": 1}, {"count": 1}, state])


def applied(number: int) -> Answer:
    return result([{}, {"rows": [{"next_cfg": 9, "cur_cfg": number}]}])


def test_deletion_waits_until_the_switch_has_applied_it(path: Path, connection: str) -> None:
    with serving(path, FOUND, deleted(9, 7), applied(8), applied(9)) as received:
        ovsdb.delete_port(connection, "br-int", "tap1")
    _, deletion, first, second = [request["params"][1:] for request in received]
    assert deletion[0]["where"] == [["name", "==", "br-int"]]
    assert deletion[0]["mutations"] == [["ports", "delete", PORT]]
    assert deletion[1]["mutations"] == [["next_cfg", "+=", 1]]
    for operations, number in ((first, 7), (second, 8)):
        assert operations[0]["op"] == "wait"
        assert (operations[0]["until"], operations[0]["rows"]) == ("!=", [{"cur_cfg": number}])
        # longer than the call itself, but bounded
        assert 5000 < operations[0]["timeout"] <= 6000


def test_deletion_of_an_absent_port_changes_nothing(path: Path, connection: str) -> None:
    with serving(path, rows([{"ports": OTHER}], [])) as received:
        ovsdb.delete_port(connection, "br-int", "tap1")
    assert len(received) == 1


def test_switch_that_does_not_apply_a_deletion(
    path: Path, connection: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        serving(path, FOUND, deleted(9, 7), lambda _message: []),
        caplog.at_level(logging.WARNING),
    ):
        # Beside other tests, the thread that serves needs a moment for the first answers.
        ovsdb.delete_port(connection, "br-int", "tap1", seconds=3)
    (record,) = caplog.records
    assert "wait until ovs-vswitchd deletes port tap1: " in record.getMessage()
    assert "no answer within" in record.getMessage()
