# SPDX-License-Identifier: Apache-2.0
"""A private Open vSwitch in the current network namespace."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import os_vif
from nova import conf

from tests.engine import daemons
from tests.suspending import suspend

BRIDGE = "br-int"
DATAPATH = "system" if Path("/sys/module/openvswitch").exists() else "netdev"
"""The datapath type as Nova and OVS name it: the kernel's, or Open vSwitch's own."""

# An emulated machine is ten to twenty times slower than its host.
_ANSWER_SECONDS = 20
_SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"


class Switch:
    """An ovsdb-server and an ovs-vswitchd with their sockets in one directory.

    The datapath is the kernel's if its module is loaded, otherwise Open vSwitch's own.

    :param namespace: path of the network namespace of its ports; None for the current one
    """

    def __init__(self, folder: Path, namespace: str | None = None) -> None:
        self.folder = folder
        self.enter = [] if namespace is None else ["nsenter", f"--net={namespace}"]
        self.connection = f"unix:{folder}/db.sock"

    def start(self) -> None:
        self.folder.mkdir()
        subprocess.run(
            ["ovsdb-tool", "create", f"{self.folder}/conf.db", _SCHEMA],
            check=True,
            capture_output=True,
        )
        self._start_database()
        self.vsctl("--no-wait", "init")
        self.start_switching()
        self.vsctl("add-br", BRIDGE, "--", "set", "bridge", BRIDGE, f"datapath_type={DATAPATH}")

    def _start_database(self) -> None:
        self._database = daemons.start(
            [
                "ovsdb-server",
                f"{self.folder}/conf.db",
                f"--remote=p{self.connection}",
                f"--unixctl={self.folder}/db.ctl",
            ],
            self.folder / "ovsdb-server.log",
            (self.folder / "db.sock").exists,
        )

    def start_switching(self) -> None:
        control = self.folder / "vswitchd.ctl"
        self._daemon = daemons.start(
            # OVN finds the sockets of bridges there.
            [
                *self.enter,
                *("env", f"OVS_RUNDIR={self.folder}"),
                *("ovs-vswitchd", self.connection, f"--unixctl={control}"),
            ],
            self.folder / "ovs-vswitchd.log",
            control.exists,
        )

    def stop_switching(self) -> None:
        daemons.stop(self._daemon)
        (self.folder / "vswitchd.ctl").unlink(missing_ok=True)

    def restart_switching(self) -> None:
        """Restart ovs-vswitchd and wait until it has all ports again."""
        self.stop_switching()
        self.start_switching()
        self._wait_for_switching(self._daemon)

    def _wait_for_switching(self, new: subprocess.Popen[bytes]) -> None:
        # ovs-vsctl waits for ovs-vswitchd only if it changes the database, so change an external
        # id.
        self.vsctl("set", "Open_vSwitch", ".", f"external_ids:process={new.pid}")

    def stop(self) -> None:
        self.vsctl("del-br", BRIDGE)
        daemons.stop(self._daemon)
        daemons.stop(self._database)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Suspend the database during the body, so that it answers no request."""
        suspend(self._database.pid)
        try:
            yield
        finally:
            os.kill(self._database.pid, signal.SIGCONT)

    @contextmanager
    def down(self, *, killed: bool) -> Iterator[None]:
        """Stop the database during the body.

        :param killed: True leaves its socket, which refuses connections
        """
        socket = self.folder / "db.sock"
        if killed:
            self._database.kill()
            self._database.wait()
        else:
            daemons.stop(self._database)
        assert socket.exists() == killed
        try:
            yield
        finally:
            socket.unlink(missing_ok=True)
            self._start_database()
            self._wait_for_switching(self._database)

    def vsctl(self, *command: str) -> str:
        return _run("ovs-vsctl", "--timeout=30", f"--db={self.connection}", *command).strip()

    def appctl(self, *command: str) -> str:
        control = f"--target={self.folder}/vswitchd.ctl"
        return _run("ovs-appctl", "--timeout=30", control, *command)

    def ports(self) -> list[str]:
        return self.vsctl("list-ports", BRIDGE).split()

    def external_ids(self) -> dict[str, dict[str, str]]:
        """Return the external ids by the name of the interface, without the bridge's."""
        shown = self.vsctl("--format=json", "--columns=name,external_ids", "list", "Interface")
        rows = json.loads(shown)["data"]
        return {name: dict(ids[1]) for name, ids in rows if name != BRIDGE}

    def interface(self, name: str, column: str) -> str:
        return self.vsctl("get", "Interface", name, column)


def use_switch(connection: str) -> None:
    """Make os-vif plug ports into the Open vSwitch with this connection."""
    os_vif.initialize()  # Registers the options.
    conf.CONF.set_override("ovsdb_connection", connection, group="os_vif_ovs")
    conf.CONF.set_override("ovs_vsctl_timeout", _ANSWER_SECONDS, group="os_vif_ovs")
    os_vif.initialize(reset=True)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command} exited with status {done.returncode}: {done.stderr}")
    return done.stdout
