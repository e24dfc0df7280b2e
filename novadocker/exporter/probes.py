# SPDX-License-Identifier: Apache-2.0
"""Probes that ask the programs which instances depend on; a running process proves nothing."""

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from novadocker.exporter import ovn
from novadocker.linux import ovsdb
from novadocker.linux.threads import Repeated
from novadocker.state_files import alive

ANSWER_SECONDS = 5.0
"""Time within which a program must answer."""

_EVERY_SECONDS = 10.0
# The periodic task of nova-compute runs once a minute.
_ALIVE_SECONDS = 300.0

# The connection preface of a client with an empty SETTINGS frame (RFC 9113). The server's SETTINGS
# frame has type 4.
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_HTTP2_SETTINGS = 4
_HTTP2_FRAME_HEADER = 9

_CONTROLLERS = ovsdb.Select("Controller", ("is_connected",))

Ask = Callable[[], None]
"""Returns if the program answered. Raises OSError if it did not, ValueError for a wrong answer."""


@dataclass(frozen=True)
class Programs:
    """Paths by which the programs of a host are asked.

    :ivar containerd: socket of containerd
    :ivar switch: directory of the sockets of Open vSwitch
    :ivar switch_control: control socket of ovs-vswitchd; None to derive it from the pid file
    :ivar ovn: directory of the sockets of OVN
    :ivar lxcfs: mount point of lxcfs
    :ivar state_path: of nova-compute
    """

    containerd: str = "/run/containerd/containerd.sock"
    switch: Path = Path("/run/openvswitch")
    switch_control: Path | None = None
    ovn: Path = Path("/run/ovn")
    lxcfs: Path = Path("/var/lib/lxcfs")
    state_path: Path = Path("/var/lib/nova")


NAMES = ("containerd", "lxcfs", "nova-compute", "ovs-agent", "ovs-vswitchd")


def asks(programs: Programs) -> dict[str, Ask]:
    """Return the function that asks each of NAMES."""
    return {
        "containerd": partial(ask_containerd, programs.containerd),
        "lxcfs": partial(ask_lxcfs, programs.lxcfs),
        "nova-compute": partial(ask_nova_compute, programs.state_path),
        "ovs-agent": partial(ask_agent, programs.switch, programs.ovn),
        "ovs-vswitchd": partial(ask_switch, programs.switch, programs.switch_control),
    }


class Probes:
    """The repeated probes. Each has its own thread, so that one that hangs does not delay others.

    A probe may hang for ever: a read of a broken lxcfs need not return.

    :param chosen: the functions that ask, by name of the program
    """

    def __init__(self, chosen: Mapping[str, Ask]) -> None:
        self._repeated = [
            Repeated(f"probe-{name}", partial(self._probe, name, ask), _EVERY_SECONDS)
            for name, ask in chosen.items()
        ]
        self._lock = threading.Lock()
        self._answers: dict[str, tuple[float, bool]] = {}

    def start(self) -> None:
        """Start the threads."""
        for repeated in self._repeated:
            repeated.start()

    def stop(self) -> None:
        """Stop the threads after the probes that run. Does not wait for them."""
        for repeated in self._repeated:
            repeated.stop()

    def up(self) -> dict[str, bool]:
        """Return whether each program answered its last probe; without those not probed yet.

        A program whose last answer is old hangs, and did not answer.
        """
        oldest = time.monotonic() - _EVERY_SECONDS - 2 * ANSWER_SECONDS
        with self._lock:
            return {name: good and at > oldest for name, (at, good) in self._answers.items()}

    def _probe(self, name: str, ask: Ask) -> None:
        try:
            ask()
            good = True
        except (OSError, ValueError):
            good = False
        with self._lock:
            self._answers[name] = (time.monotonic(), good)


def ask_containerd(path: str) -> None:
    """Check that containerd's gRPC server answers with its HTTP/2 settings.

    :raises OSError: it does not answer
    :raises ValueError: the answer is not HTTP/2
    """
    with _connected(path) as connection:
        connection.sendall(_HTTP2_HELLO)
        answer = b""
        while len(answer) < _HTTP2_FRAME_HEADER:
            part = connection.recv(_HTTP2_FRAME_HEADER - len(answer))
            if not part:
                raise ValueError("containerd closed the connection")
            answer += part
        if answer[3] != _HTTP2_SETTINGS:
            raise ValueError("containerd's answer is not HTTP/2")


def ask_lxcfs(folder: Path) -> None:
    """Check that lxcfs is mounted and that its ``proc/uptime`` can be read.

    :raises OSError: the file can't be read
    :raises ValueError: lxcfs is not mounted, or the file is empty
    """
    if not os.path.ismount(folder):
        raise ValueError(f"lxcfs is not mounted at {folder}")
    if not (folder / "proc/uptime").read_bytes():
        raise ValueError(f"{folder}/proc/uptime is empty")


def ask_nova_compute(state_path: Path) -> None:
    """Check that nova-compute ran its periodic task in the last minutes.

    :raises OSError: it has not run yet
    :raises ValueError: the last run was too long ago
    """
    seconds = alive.age(state_path)
    if seconds > _ALIVE_SECONDS:
        raise ValueError(f"nova-compute ran its last periodic task {seconds:.0f} s ago")


def ask_switch(folder: Path, control: Path | None = None) -> None:
    """Check that ovs-vswitchd answers on its control socket (ovs-appctl(8)).

    :raises OSError: it does not answer
    :raises ValueError: the answer is an error
    """
    if control is None:
        pid = int((folder / "ovs-vswitchd.pid").read_text())
        control = folder / f"ovs-vswitchd.{pid}.ctl"
    ovsdb.call(f"unix:{control}", "version", [])


def ask_agent(folder: Path, ovn_folder: Path) -> None:
    """Check the program that sets the flows of Open vSwitch: Neutron's OVS agent or ovn-controller.

    The agent is a controller of the switch, which probes it every few seconds
    (``inactivity_probe`` in ovs-vswitchd.conf.db(5)). ovn-controller is asked itself.

    :param folder: directory of the sockets of Open vSwitch
    :param ovn_folder: directory of the sockets of OVN
    :raises OSError: Open vSwitch's database or ovn-controller does not answer
    :raises ValueError: no bridge is connected to a controller, ovn-controller is not connected to
        OVN's database, or an answer is malformed
    """
    rows, settings = ovsdb.select(database(folder), _CONTROLLERS, ovn.SETTINGS)
    try:
        connected = [row["is_connected"] for row in rows]
        has_ovn = bool(ovn.remotes_of(settings))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"Open vSwitch's database sent a malformed answer: {rows!r}") from error
    if has_ovn:
        ovn.ask_controller(ovn_folder)
    elif True not in connected:
        raise ValueError("no bridge of Open vSwitch is connected to a controller")


def database(folder: Path) -> str:
    """Return the connection to Open vSwitch's database.

    :param folder: directory of the sockets of Open vSwitch
    """
    return f"unix:{folder}/db.sock"


def _connected(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(ANSWER_SECONDS)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection
