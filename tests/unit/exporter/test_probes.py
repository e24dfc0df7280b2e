# SPDX-License-Identifier: Apache-2.0
"""The exporter's probes of the programs that servers depend on."""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from novadocker.exporter import probes
from novadocker.exporter.metrics import process_metric
from novadocker.exporter.rendering import render
from novadocker.state_files import alive

SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
PING = bytes((0, 0, 8, 6, 0, 0, 0, 0, 0)) + bytes(8)


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[list[bytes]]:
    """Answer one client at a socket; yield the list of its messages."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(4096))
                # The client may close the connection before it has read the whole answer.
                with suppress(BrokenPipeError):
                    for start in range(0, len(answer), 5):
                        connection.sendall(answer[start : start + 5])

        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        thread.join()


def raises(ask: Callable[[], None]) -> bool:
    try:
        ask()
    except (OSError, ValueError):
        return True
    return False


@pytest.mark.parametrize(
    ("answer", "good"), [(SETTINGS, True), (PING, False), (b"HTTP/1.1 400", False), (b"", False)]
)
def test_containerd_works_when_it_greets(tmp_path: Path, answer: bytes, good: bool) -> None:
    path = tmp_path / "socket"
    with answering(path, answer) as asked:
        assert raises(lambda: probes.ask_containerd(str(path))) is not good
    assert asked[0].startswith(b"PRI * HTTP/2.0\r\n")


def test_a_socket_that_nobody_listens_at(tmp_path: Path) -> None:
    (tmp_path / "socket").write_text("")
    with pytest.raises(OSError, match="refused"):
        probes.ask_containerd(str(tmp_path / "socket"))


def test_a_program_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "ANSWER_SECONDS", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        with pytest.raises(TimeoutError):
            probes.ask_containerd(str(tmp_path / "socket"))


@pytest.mark.parametrize(
    ("answer", "good"),
    [
        ({"id": 0, "error": None, "result": "ovs-vswitchd 3.1"}, True),
        ({"id": 0, "error": "no such command", "result": None}, False),
        ([], False),
    ],
)
def test_the_switch_works_when_it_answers(tmp_path: Path, answer: object, good: bool) -> None:
    (tmp_path / "ovs-vswitchd.pid").write_text("42\n")
    with answering(tmp_path / "ovs-vswitchd.42.ctl", json.dumps(answer).encode()) as asked:
        assert raises(lambda: probes.ask_switch(tmp_path)) is not good
    assert json.loads(asked[0])["method"] == "version"


def test_a_switch_with_a_control_socket_of_its_own(tmp_path: Path) -> None:
    answer = json.dumps({"id": 0, "error": None, "result": "ovs-vswitchd 3.1"})
    with answering(tmp_path / "vswitchd.ctl", answer.encode()):
        probes.ask_switch(tmp_path, tmp_path / "vswitchd.ctl")


@pytest.mark.parametrize(
    ("rows", "good"),
    [
        ([{"is_connected": True}], True),
        ([{"is_connected": False}, {"is_connected": True}], True),
        ([{"is_connected": False}], False),
        ([], False),
        ([{}], False),
        ([1], False),
    ],
)
def test_the_agent_works_when_the_switch_hears_it(
    tmp_path: Path, rows: list[object], good: bool
) -> None:
    with answering(tmp_path / "db.sock", switch_answer(rows, {})):
        assert raises(lambda: probes.ask_agent(tmp_path, tmp_path)) is not good


def switch_answer(controllers: list[object], external_ids: dict[str, str]) -> bytes:
    settings = [{"external_ids": ["map", [list(pair) for pair in external_ids.items()]]}]
    result = [{"rows": controllers}, {"rows": settings}]
    return json.dumps({"id": 0, "error": None, "result": result}).encode()


@pytest.mark.parametrize(
    ("status", "good"), [("connected\n", True), ("not connected\n", False), (None, False)]
)
def test_with_ovn_the_agent_works_when_ovn_controller_is_connected(
    tmp_path: Path, status: str | None, good: bool
) -> None:
    """OVN's controller is no OpenFlow controller of the switch."""
    (tmp_path / "ovn-controller.pid").write_text("7\n")
    answer = json.dumps({"id": 0, "error": None, "result": status}).encode()
    with ExitStack() as stack:
        ids = {"ovn-remote": "tcp:192.0.2.1:6642"}
        stack.enter_context(answering(tmp_path / "db.sock", switch_answer([], ids)))
        if status is not None:
            control = tmp_path / "ovn-controller.7.ctl"
            asked = stack.enter_context(answering(control, answer))
        assert raises(lambda: probes.ask_agent(tmp_path, tmp_path)) is not good
    if status is not None:
        assert json.loads(asked[0])["method"] == "connection-status"


def test_lxcfs_works_when_its_files_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/uptime").write_text("1.00 1.00\n")
    assert raises(lambda: probes.ask_lxcfs(tmp_path))
    monkeypatch.setattr(os.path, "ismount", lambda _path: True)
    probes.ask_lxcfs(tmp_path)
    (tmp_path / "proc/uptime").unlink()
    assert raises(lambda: probes.ask_lxcfs(tmp_path))


def test_nova_compute_works_when_it_left_a_sign_lately(tmp_path: Path) -> None:
    assert raises(lambda: probes.ask_nova_compute(tmp_path))
    alive.tell(tmp_path)
    probes.ask_nova_compute(tmp_path)
    (sign,) = tmp_path.iterdir()
    os.utime(sign, (0, 0))
    assert raises(lambda: probes.ask_nova_compute(tmp_path))
    alive.tell(tmp_path)
    probes.ask_nova_compute(tmp_path)


def test_a_disk_that_takes_no_sign_is_no_error(tmp_path: Path) -> None:
    alive.tell(tmp_path / "missing")


def test_one_that_hangs_hinders_no_other() -> None:
    release, answered = threading.Event(), threading.Event()

    def hang() -> None:
        release.wait(60)

    def fail() -> None:
        raise ValueError("no")

    found = probes.Probes({"bad": fail, "good": answered.set, "hung": hang})
    found.start()
    try:
        assert answered.wait(60)
        while len(found.up()) < 2:
            pass
        assert found.up() == {"bad": False, "good": True}
    finally:
        release.set()
        found.stop()


def test_one_that_answered_long_ago_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    hung, release = threading.Event(), threading.Event()
    calls: list[None] = []

    def once() -> None:
        calls.append(None)
        if len(calls) > 1:
            hung.set()
            release.wait(60)

    monkeypatch.setattr(probes, "_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(probes, "ANSWER_SECONDS", 0.01)
    found = probes.Probes({"program": once})
    found.start()
    try:
        assert hung.wait(60)
        while found.up()["program"]:
            pass
    finally:
        release.set()
        found.stop()


def test_the_metric_names_the_process() -> None:
    text = render([process_metric({"lxcfs": True, "containerd": False})]).decode()
    assert 'novadocker_host_process_up{process="lxcfs"} 1\n' in text
    assert 'novadocker_host_process_up{process="containerd"} 0\n' in text


def test_every_program_is_asked() -> None:
    assert tuple(probes.asks(probes.Programs())) == probes.NAMES
