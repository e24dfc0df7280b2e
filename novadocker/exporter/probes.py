# SPDX-License-Identifier: Apache-2.0
"""Whether the programs that servers depend on do their work: each is asked, none is looked for."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from novadocker.state_files import alive

ANSWER_SECONDS = 5.0
"""How long a program has to answer."""

_EVERY_SECONDS = 10.0
# nova-compute's periodic task runs once a minute
_ALIVE_SECONDS = 300.0
_LARGEST_ANSWER = 64 << 10
# some hundred bytes for each of a host's ports
_LARGEST_ROWS = 4 << 20

# RFC 9113: what a client sends first, with an empty frame of settings; the server's has type 4
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_HTTP2_SETTINGS = 4
_HTTP2_FRAME_HEADER = 9

_CONTROLLERS = {
    "op": "select",
    "table": "Controller",
    "where": [],
    "columns": ["is_connected"],
}

Ask = Callable[[], None]
"""Returns when the program answered; raises OSError or ValueError if it did not, or not well."""


@dataclass(frozen=True)
class Programs:
    """Where the programs of a host can be asked.

    :ivar containerd: its socket
    :ivar switch: the folder with the sockets of Open vSwitch
    :ivar switch_control: the control socket of ovs-vswitchd; None to find it by its pid file
    :ivar lxcfs: where it is mounted
    :ivar state_path: nova-compute's
    """

    containerd: str = "/run/containerd/containerd.sock"
    switch: Path = Path("/run/openvswitch")
    switch_control: Path | None = None
    lxcfs: Path = Path("/var/lib/lxcfs")
    state_path: Path = Path("/var/lib/nova")


NAMES = ("containerd", "lxcfs", "nova-compute", "ovs-agent", "ovs-vswitchd")


def asks(programs: Programs) -> dict[str, Ask]:
    """Return how each of NAMES is asked."""
    return {
        "containerd": partial(ask_containerd, programs.containerd),
        "lxcfs": partial(ask_lxcfs, programs.lxcfs),
        "nova-compute": partial(ask_nova_compute, programs.state_path),
        "ovs-agent": partial(ask_agent, programs.switch),
        "ovs-vswitchd": partial(ask_switch, programs.switch, programs.switch_control),
    }


class Probes:
    """Asks each program again and again, in a thread of its own: one that hangs hinders no other.

    :param chosen: how each is asked, by name
    """

    def __init__(self, chosen: Mapping[str, Ask]) -> None:
        self._chosen = chosen
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._answers: dict[str, tuple[float, bool]] = {}

    def start(self) -> None:
        """Begin to ask."""
        for name, ask in self._chosen.items():
            # a daemon: a read of a broken lxcfs may never return
            threading.Thread(
                target=self._run, args=(name, ask), name=f"probe-{name}", daemon=True
            ).start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()

    def up(self) -> dict[str, bool]:
        """Return whether each answered lately; without those that were not asked yet."""
        oldest = time.monotonic() - _EVERY_SECONDS - 2 * ANSWER_SECONDS
        with self._lock:
            return {name: good and at > oldest for name, (at, good) in self._answers.items()}

    def _run(self, name: str, ask: Ask) -> None:
        while True:
            try:
                ask()
                good = True
            except (OSError, ValueError):
                good = False
            with self._lock:
                self._answers[name] = (time.monotonic(), good)
            if self._stopped.wait(_EVERY_SECONDS):
                return


def ask_containerd(path: str) -> None:
    """See that a gRPC server greets: it sends its settings unasked."""
    with _connected(path) as connection:
        connection.sendall(_HTTP2_HELLO)
        answer = b""
        while len(answer) < _HTTP2_FRAME_HEADER:
            part = connection.recv(_HTTP2_FRAME_HEADER - len(answer))
            if not part:
                raise ValueError("it hung up")
            answer += part
        if answer[3] != _HTTP2_SETTINGS:
            raise ValueError("that is no HTTP/2")


def ask_lxcfs(folder: Path) -> None:
    """See that lxcfs is mounted and that a file of it can be read."""
    if not os.path.ismount(folder):
        raise ValueError(f"nothing is mounted at {folder}")
    if not (folder / "proc/uptime").read_bytes():
        raise ValueError("its files are empty")


def ask_nova_compute(state_path: Path) -> None:
    """See that nova-compute asked the driver for the host's resources lately."""
    seconds = alive.age(state_path)
    if seconds > _ALIVE_SECONDS:
        raise ValueError(f"it has done nothing for {seconds:.0f} s")


def ask_switch(folder: Path, control: Path | None = None) -> None:
    """See that ovs-vswitchd answers (ovs-appctl(8))."""
    if control is None:
        pid = int((folder / "ovs-vswitchd.pid").read_text())
        control = folder / f"ovs-vswitchd.{pid}.ctl"
    call(str(control), "version", [])


def ask_agent(folder: Path) -> None:
    """See that Open vSwitch hears its controller, which the OVS agent is.

    The switch asks it to answer each few seconds (``inactivity_probe`` of ovs-vswitchd.conf.db(5)).
    """
    (rows,) = select(folder, _CONTROLLERS)
    try:
        connected = [row["is_connected"] for row in rows]
    except (KeyError, TypeError) as error:
        raise ValueError(f"the database answers {rows!r}") from error
    if True not in connected:
        raise ValueError("no bridge has a controller that answers")


def select(folder: Path, *operations: Mapping[str, object]) -> list[list[dict[str, Any]]]:
    """Return the rows that each operation ``select`` (RFC 7047) gives, all of one moment.

    :param folder: with the sockets of Open vSwitch
    :raises OSError: the database does not answer
    :raises ValueError: it answers something else
    """
    parameters = ["Open_vSwitch", *operations]
    result: Any = call(str(folder / "db.sock"), "transact", parameters, _LARGEST_ROWS)
    try:
        rows = [found["rows"] for found in result]
    except (KeyError, TypeError) as error:
        raise ValueError(f"the database answers {result!r}") from error
    if len(rows) != len(operations):
        raise ValueError(f"the database answers {result!r}")
    return rows


def call(
    path: str, method: str, parameters: Sequence[object], largest: int = _LARGEST_ANSWER
) -> object:
    """Return the result of a JSON-RPC 1.0 call, as the daemons of Open vSwitch speak it.

    :param largest: bytes that an answer may have
    :raises OSError: nobody answers in time
    :raises ValueError: the answer is an error, or none
    """
    request = {"id": 0, "method": method, "params": list(parameters)}
    deadline = time.monotonic() + ANSWER_SECONDS
    with _connected(path) as connection:
        connection.sendall(json.dumps(request).encode())
        text = b""
        while len(text) < largest:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            part = connection.recv(_LARGEST_ANSWER)
            text += part
            try:
                answer = json.loads(text)
            except ValueError:
                if not part:
                    raise
                continue
            if not isinstance(answer, dict) or answer.get("error") is not None:
                raise ValueError(f"{method} gives {answer!r}")
            return answer.get("result")
    raise ValueError("its answer is too large")


def _connected(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(ANSWER_SECONDS)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection
