# SPDX-License-Identifier: Apache-2.0
"""The terminal that is a server's console, and the clients that may connect to it."""

import contextlib
import os
import socket
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from oslo_privsep import comm

from novadocker import exception, naming
from novadocker.linux import tcp_owner
from novadocker.virt.docker.driver import DockerDriver
from novadocker.virt.docker.guest import console
from novadocker.virt.docker.model import Terminal
from tests import waiting
from tests.unit.fakes import FakeEngine

CONTEXT = nova_context.get_admin_context()
UUID = "0e6e0b4b-7a41-4f0b-9f1a-0f64e1f5a1c1"


@dataclass
class Opened:
    """A fake engine that records the requested terminal."""

    files: frozenset[str]
    calls: list[tuple[str, ...]] = field(default_factory=list)

    def inspect_container(self, container: str) -> Any:
        return SimpleNamespace(pid=7)

    def has_program(self, _container: str, pid: int, path: str) -> bool:
        assert pid == 7
        return path in self.files

    def attach_terminal(self, container: str) -> None:
        self.calls.append(("process",))

    def open_terminal(self, container: str, command: tuple[str, ...]) -> None:
        self.calls.append(command)


@pytest.mark.parametrize(
    ("kind", "files", "opened"),
    [
        (None, {"/bin/login", "/bin/sh"}, ("/bin/login",)),
        (None, {"/usr/bin/login"}, ("/usr/bin/login",)),
        (None, {"/bin/sh"}, ("process",)),
        ("login", {"/bin/login"}, ("/bin/login",)),
        ("shell", {"/bin/login", "/bin/bash", "/bin/sh"}, ("/bin/bash", "-l")),
        ("shell", {"/bin/sh"}, ("/bin/sh", "-l")),
        ("process", {"/bin/login"}, ("process",)),
        # An invalid value of a tenant's property never opens a shell.
        ("nonsense", {"/bin/login", "/bin/sh"}, ("/bin/login",)),
    ],
)
def test_the_terminal_by_image(
    kind: str | None,
    files: set[str],
    opened: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Opened(frozenset(files))
    monkeypatch.setattr(console.files, "has_program", engine.has_program)
    console.terminal_opener(engine, "c" * 64, kind)()  # type: ignore[arg-type]
    assert engine.calls == [opened]


def test_a_login_prompt_that_the_image_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Opened(frozenset({"/bin/sh"}))
    monkeypatch.setattr(console.files, "has_program", engine.has_program)
    fault = "refused to open a login prompt: the image has no program /bin/login"
    with pytest.raises(exception.EngineError, match=fault):
        console.terminal_opener(engine, "c" * 64, "login")()  # type: ignore[arg-type]


def test_proxies_are_addresses_or_networks() -> None:
    found = console.parse_proxies(["192.0.2.9", "198.51.100.7/24", "2001:db8::/64"])
    assert [str(network) for network in found] == [
        "192.0.2.9/32",
        "198.51.100.0/24",
        "2001:db8::/64",
    ]
    with pytest.raises(exception.InvalidConfiguration, match=r"serial_console_proxies.*'proxy'"):
        console.parse_proxies(["proxy"])


def test_users_are_names_or_ids() -> None:
    assert console.parse_users([]) == {0, os.geteuid()}
    assert console.parse_users(["root", "4242"]) == {0, os.geteuid(), 4242}
    with pytest.raises(exception.InvalidConfiguration, match=r"serial_console_users.*'no-one'"):
        console.parse_users(["no-one"])


def connect(found: console.Consoles, opened: threading.Event) -> bytes:
    """Connect to a console and return what it sends until the end."""

    def open_terminal() -> Terminal:
        opened.set()
        raise exception.EngineError(operation="open a terminal", reason="a test")

    port = found.open(UUID, "c" * 64, open_terminal)
    with (
        socket.create_connection(("127.0.0.1", port), 60) as client,
        contextlib.suppress(ConnectionResetError),
        client.makefile("rb") as source,
    ):
        return source.read()
    return b""


@pytest.mark.parametrize(
    ("proxies", "users", "reason"),
    [
        (["127.0.0.1"], {os.getuid()}, None),
        (["127.0.0.1"], {4242}, f"user {os.getuid()} of this host is not in"),
        (["192.0.2.1"], {os.getuid()}, "address 127.0.0.1 is not in"),
    ],
)
def test_only_users_and_addresses_of_the_options_connect(
    proxies: list[str], users: set[int], reason: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    networks = console.parse_proxies(proxies)
    found = console.Consoles(FakeEngine(), "127.0.0.1", networks, users, 60.0)  # type: ignore[arg-type]
    opened = threading.Event()
    try:
        answers = [connect(found, opened) for _ in range(5)]
    finally:
        found.stop()
    assert opened.is_set() == (reason is None)
    assert all(answers) == (reason is None)
    refusals = [line for line in caplog.messages if "Refused console connection" in line]
    assert len(refusals) == (1 if reason else 0)
    assert reason is None or reason in refusals[0]


def test_a_fault_does_not_end_the_thread_that_accepts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faults = [ValueError("a fault"), ValueError("a fault")]

    def uid_of_peer(client: object) -> int:
        if faults:
            raise faults.pop()
        return 0

    monkeypatch.setattr(tcp_owner, "uid_of_peer", uid_of_peer)
    networks = console.parse_proxies(["127.0.0.1"])
    found = console.Consoles(FakeEngine(), "127.0.0.1", networks, {0}, 60.0)  # type: ignore[arg-type]
    opened = threading.Event()
    try:
        answers = [connect(found, opened) for _ in range(3)]
    finally:
        found.stop()
    assert [bool(answer) for answer in answers] == [False, False, True]
    assert len([line for line in caplog.messages if line.endswith(": a fault")]) == 1


def test_a_process_that_can_not_be_ended_ends_its_console(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def connect_to(*_arguments: object) -> None:
        raise comm.PrivsepTimeout("60 s")

    monkeypatch.setattr(console.Consoles, "_connect", connect_to)
    networks = console.parse_proxies(["127.0.0.1"])
    found = console.Consoles(FakeEngine(), "127.0.0.1", networks, {os.getuid()}, 60.0)  # type: ignore[arg-type]
    caplog.set_level("INFO")
    try:
        assert connect(found, threading.Event()) == b""
        waiting.until(lambda: f"Closed console of container {'c' * 64}: 60 s" in caplog.text)
    finally:
        found.stop()


@pytest.mark.parametrize(
    ("peer", "user", "refused"),
    [
        ("127.0.0.1", None, True),
        ("192.0.2.11", None, True),
        ("192.0.2.2", None, False),
        ("192.0.2.2", 4242, True),
        ("192.0.2.2", 0, False),
        ("192.0.2.2", OSError("a fault"), True),
    ],
)
def test_a_client_on_this_host_must_have_a_user(
    peer: str, user: int | OSError | None, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Client:
        def getpeername(self) -> tuple[str, int]:
            return peer, 5000

        def getsockname(self) -> tuple[str, int]:
            return "192.0.2.11", 10000

    def uid_of_peer(client: object) -> int | None:
        if isinstance(user, OSError):
            raise user
        return user

    monkeypatch.setattr(tcp_owner, "uid_of_peer", uid_of_peer)
    networks = console.parse_proxies(["127.0.0.1", "192.0.2.0/24"])
    found = console.Consoles(FakeEngine(), "192.0.2.11", networks, {0}, 60.0)  # type: ignore[arg-type]
    try:
        assert (found._refusal(Client()) is not None) == refused  # type: ignore[arg-type]
    finally:
        found.stop()


def test_a_server_that_does_not_run_has_no_console(
    driver: DockerDriver, engine: FakeEngine, instance: objects.Instance
) -> None:
    engine.add(
        naming.container_name(instance.uuid),
        {naming.LABEL_UUID: instance.uuid, naming.LABEL_SCHEMA: naming.SCHEMA},
    )
    with pytest.raises(nova_exception.InstanceNotReady):
        driver.get_serial_console(CONTEXT, instance)


@pytest.mark.parametrize("kind", ["vnc", "spice", "mks"])
def test_there_is_no_screen(driver: DockerDriver, instance: objects.Instance, kind: str) -> None:
    with pytest.raises(nova_exception.ConsoleTypeUnavailable):
        getattr(driver, f"get_{kind}_console")(CONTEXT, instance)


@pytest.mark.parametrize("opened", [False, True])
def test_a_stop_closes_all_that_was_opened(opened: bool) -> None:
    process = psutil.Process()
    before, threads = process.num_fds(), threading.active_count()
    found = console.Consoles(FakeEngine(), "127.0.0.1", (), (), 60.0)  # type: ignore[arg-type]
    if opened:
        found.open(UUID, "c" * 64, lambda: pytest.fail("nobody came"))
    found.stop()
    found.stop()
    assert (process.num_fds(), threading.active_count()) == (before, threads)
    with pytest.raises(nova_exception.ConsoleTypeUnavailable):
        found.open(UUID, "c" * 64, lambda: pytest.fail("nobody came"))


@pytest.mark.parametrize(
    ("pieces", "passed", "sizes"),
    [
        ([b"ls\r"], b"ls\r", []),
        ([b"\x1b"], b"\x1b", []),
        ([b"\x1b[A\x1b[8~"], b"\x1b[A\x1b[8~", []),
        ([b"a\x1b[8;50;132tb"], b"ab", [(50, 132)]),
        ([b"a\x1b[8", b";50;1", b"32tb"], b"ab", [(50, 132)]),
        ([b"\x1b[8;5;6t\x1b[8;7;8t"], b"", [(7, 8)]),
        # This report has no valid size; the next ones answer other queries.
        ([b"\x1b[8;0;80t"], b"", []),
        ([b"\x1b[8;12345;80t"], b"\x1b[8;12345;80t", []),
        ([b"\x1b[8;5", b"x"], b"\x1b[8;5x", []),
        ([b"\x1b[4;600;800t"], b"\x1b[4;600;800t", []),
    ],
)
def test_size_reports(pieces: list[bytes], passed: bytes, sizes: list[tuple[int, int]]) -> None:
    reports = console.SizeReports()
    seen = [reports.feed(piece) for piece in pieces]
    assert b"".join(data for data, _ in seen) == passed
    assert [size for _, size in seen if size] == sizes
