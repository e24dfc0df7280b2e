# SPDX-License-Identifier: Apache-2.0
"""Consoles of containers, through plain TCP connections as nova-serialproxy uses them."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from nova import conf

from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.guest import console
from tests.engine.engine.test_client import create
from tests.waiting import until

__all__ = ["create"]

HOME = console.parse_proxies(["127.0.0.1"])
UUID = "0e6e0b4b-7a41-4f0b-9f1a-0f64e1f5a1c1"
SECONDS = 60


@pytest.fixture(autouse=True)
def ports() -> Iterator[None]:
    conf.CONF.set_override("port_range", "21000:21020", group="serial_console")
    yield
    conf.CONF.clear_override("port_range", group="serial_console")


@pytest.fixture
def make(engine: Engine) -> Iterator[Callable[..., console.Consoles]]:
    made = []

    def call(proxies: Any = HOME, idle: float = 60.0) -> console.Consoles:
        users = console.parse_users([])
        made.append(console.Consoles(engine, "127.0.0.1", proxies, users, idle))
        return made[-1]

    yield call
    for found in made:
        found.stop()


class Screen:
    """A client's view of a console."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=SECONDS)
        self.text = b""

    def wait(self, wanted: bytes) -> bytes:
        """Read until ``wanted`` appears; return all data since the last call."""
        while wanted not in self.text:
            data = self.socket.recv(4096)
            assert data, self.text
            self.text += data
        seen, self.text = self.text, b""
        return seen

    def ends(self) -> bool:
        """Return True if the connection ends; read until then."""
        try:
            while self.socket.recv(4096):
                pass
        except ConnectionResetError:
            return True
        return True

    def close(self) -> None:
        self.socket.close()


def processes(engine: Engine, container: str) -> list[bytes]:
    """Return the command lines in a container, read from the kernel."""
    group = Path(f"/proc/{engine.inspect_container(container).pid}/cgroup").read_text()
    path = next(line for line in group.splitlines() if ":pids:" in line or line.startswith("0::"))
    folder = Path("/sys/fs/cgroup", "pids" if ":pids:" in path else "", path.split(":", 2)[2][1:])
    found = []
    for pid in (folder / "cgroup.procs").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes())
    return found


def test_a_shell_on_a_real_terminal(engine: Engine, create: Any, make: Any) -> None:
    container = create("sleep", "100")
    engine.start_container(container)
    found = make()
    port = found.open(UUID, container, console.terminal_opener(engine, container, "shell"))
    assert found.open(UUID, container, console.terminal_opener(engine, container, "x")) == port
    with closing(Screen(port)) as screen:
        screen.socket.sendall(b"stty size; echo a$((1+1))b\n")
        assert b"24 80" in screen.wait(b"a2b")
        screen.socket.sendall(b"\x1b[8;5")
        screen.socket.sendall(b"0;132tstty size; echo c$((1+2))d\n")
        assert b"50 132" in screen.wait(b"c3d")
        # Control keys send signals, and the engine must handle none of them as detach keys.
        screen.socket.sendall(b"sleep 1000\n")
        until(lambda: b"sleep\x001000\x00" in processes(engine, container))
        screen.wait(b"1000\r\n")
        screen.socket.sendall(b"\x10\x11\x03")
        screen.wait(b"# ")
        screen.socket.sendall(b"exit\n")
        assert screen.ends()


def test_nothing_stays_behind_a_client_that_goes(engine: Engine, create: Any, make: Any) -> None:
    container = create("sleep", "100")
    engine.start_container(container)
    port = make().open(UUID, container, console.terminal_opener(engine, container, "shell"))
    for _ in range(3):
        with closing(Screen(port)) as screen:
            screen.socket.sendall(b"sleep 8888\n")
            until(lambda: b"sleep\x008888\x00" in processes(engine, container))
    until(lambda: processes(engine, container) == [b"sleep\x00100\x00"])


def test_the_oldest_of_too_many_makes_room(engine: Engine, create: Any, make: Any) -> None:
    container = create("sleep", "100")
    engine.start_container(container)
    before = threading.active_count()
    port = make().open(UUID, container, console.terminal_opener(engine, container, "shell"))
    screens = [Screen(port) for _ in range(12)]
    screens[-1].socket.sendall(b"echo a$((1+1))b\n")
    screens[-1].wait(b"a2b")
    assert all(screen.ends() for screen in screens[:8])
    for screen in screens:
        screen.close()
    until(lambda: threading.active_count() <= before + 1)
    until(lambda: processes(engine, container) == [b"sleep\x00100\x00"])


def test_two_hundred_connections_one_after_the_other(
    engine: Engine, create: Any, make: Any
) -> None:
    container = create("sh", "-c", "while read line; do echo got-$line; done")
    engine.start_container(container)
    port = make().open(UUID, container, console.terminal_opener(engine, container, "process"))
    with closing(Screen(port)) as screen:
        screen.socket.sendall(b"first\n")
        screen.wait(b"got-first")
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(200):
        Screen(port).close()
    with closing(Screen(port)) as screen:
        screen.socket.sendall(b"last\n")
        screen.wait(b"got-last")
    until(lambda: threading.active_count() <= before[0])
    until(lambda: len(os.listdir("/proc/self/fd")) <= before[1])


def test_no_more_than_the_host_may_have(
    engine: Engine, create: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_MOST_CONNECTIONS", 1)
    container = create("sleep", "100")
    engine.start_container(container)
    port = make().open(UUID, container, console.terminal_opener(engine, container, "shell"))
    with closing(Screen(port)) as first, closing(Screen(port)) as second:
        second.wait(b"Too many consoles")
        assert second.ends()
        first.socket.sendall(b"echo a$((1+1))b\n")
        first.wait(b"a2b")


def test_only_proxies_get_in(engine: Engine, create: Any, make: Any) -> None:
    container = create("sleep", "100")
    engine.start_container(container)
    found = make(console.parse_proxies(["192.0.2.0/24"]))
    port = found.open(UUID, container, console.terminal_opener(engine, container, "shell"))
    with closing(Screen(port)) as screen:
        assert screen.ends()
    assert processes(engine, container) == [b"sleep\x00100\x00"]


COMMAND = """
import os, socket, sys
os.setuid(65534)
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 60) as connection:
    connection.sendall(b"touch /tmp/entered\\n")
    if sys.argv[2] == "waits":
        connection.recv(1)
"""


@pytest.mark.parametrize("client", ["waits", "closes"])
def test_another_user_of_this_host_does_not_get_in(
    engine: Engine, create: Any, make: Any, client: str
) -> None:
    container = create("sleep", "100")
    engine.start_container(container)
    port = make().open(UUID, container, console.terminal_opener(engine, container, "shell"))
    command = [sys.executable, "-c", COMMAND, str(port), client]
    subprocess.run(command, timeout=SECONDS, check=False, capture_output=True)
    with closing(Screen(port)) as screen:
        screen.socket.sendall(b"ls /tmp/entered; echo a$((1+1))b\n")
        assert b"No such file" in screen.wait(b"a2b")


def test_the_first_process_is_the_console_of_an_image_without_login(
    engine: Engine, create: Any, make: Any
) -> None:
    container = create("sh", "-c", "rm /bin/login; while read line; do echo got-$line; done")
    engine.start_container(container)
    until(lambda: not engine.has_file(container, "/bin/login"))
    port = make().open(UUID, container, console.terminal_opener(engine, container, None))
    for _ in range(2):
        with closing(Screen(port)) as screen:
            screen.socket.sendall(b"typed\n")
            screen.wait(b"got-typed")
    assert b"got-typed" in engine.read_console(container, 4096)


def test_a_connection_does_not_change_the_size_of_the_first_process_s_terminal(
    engine: Engine, create: Any, make: Any
) -> None:
    script = "trap 'echo size; stty size' WINCH; while :; do read line && echo got-$line; done"
    container = create("sh", "-c", script)
    engine.start_container(container)
    port = make().open(UUID, container, console.terminal_opener(engine, container, "process"))
    for rows in (50, 40):
        with closing(Screen(port)) as screen:
            screen.socket.sendall(b"typed\n")
            assert b"size" not in screen.wait(b"got-typed")
            screen.socket.sendall(b"\x1b[8;%d;132t" % rows)
            screen.wait(b"%d 132" % rows)
    assert engine.read_console(container, 4096).count(b"size") == 2


def test_a_login_prompt_where_the_image_has_one(engine: Engine, create: Any, make: Any) -> None:
    container = create("sleep", "100")
    engine.start_container(container)
    found = make()
    port = found.open(UUID, container, console.terminal_opener(engine, container, None))
    with closing(Screen(port)) as screen:
        screen.wait(b"web-1 login: ")
        found.close(UUID)
        assert screen.ends()
    with pytest.raises(ConnectionRefusedError):
        Screen(port)
    until(lambda: processes(engine, container) == [b"sleep\x00100\x00"])


@pytest.mark.parametrize("kind", ["shell", "process"])
def test_a_console_ends_with_its_server(engine: Engine, create: Any, make: Any, kind: str) -> None:
    container = create("sh", "-c", "read line; echo $line; sleep 100")
    engine.start_container(container)
    port = make().open(UUID, container, console.terminal_opener(engine, container, kind))
    with closing(Screen(port)) as screen:
        screen.socket.sendall(b"echo up\n")
        screen.wait(b"up")
        engine.remove_container(container)
        assert screen.ends()
    with closing(Screen(port)) as screen:
        screen.wait(b"refused")
        assert screen.ends()


def test_an_idle_port_is_given_back(
    engine: Engine, create: Any, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_LOOK_SECONDS", 0.05)
    found = make(idle=0.1)
    port = found.open(UUID, "c" * 64, lambda: pytest.fail("nobody connects"))
    until(lambda: UUID not in found._consoles)
    assert found.open(UUID, "c" * 64, lambda: pytest.fail("nobody connects")) == port
