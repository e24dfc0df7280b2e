# SPDX-License-Identifier: Apache-2.0
"""A private Open vSwitch in the current network namespace."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.engine import daemons

BRIDGE = "br-int"
_SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"


class Switch:
    """An ovsdb-server and an ovs-vswitchd with their sockets in one folder.

    The datapath is OVS's own, in userspace: it needs no kernel module.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.connection = f"unix:{folder}/db.sock"

    def start(self) -> None:
        self.folder.mkdir()
        subprocess.run(
            ["ovsdb-tool", "create", f"{self.folder}/conf.db", _SCHEMA],
            check=True,
            capture_output=True,
        )
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
        self.vsctl("--no-wait", "init")
        # else TCP between veth ends that leave checksums to hardware does not work
        self.vsctl("--no-wait", "set", "open", ".", "other_config:userspace-tso-enable=true")
        self.start_switching()
        self.vsctl("add-br", BRIDGE, "--", "set", "bridge", BRIDGE, "datapath_type=netdev")

    def start_switching(self) -> None:
        control = self.folder / "vswitchd.ctl"
        self._daemon = daemons.start(
            ["ovs-vswitchd", self.connection, f"--unixctl={control}"],
            self.folder / "ovs-vswitchd.log",
            control.exists,
        )

    def stop_switching(self) -> None:
        daemons.stop(self._daemon)
        (self.folder / "vswitchd.ctl").unlink(missing_ok=True)

    def stop(self) -> None:
        self.vsctl("del-br", BRIDGE)
        daemons.stop(self._daemon)
        daemons.stop(self._database)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """The database answers nothing during the body."""
        os.kill(self._database.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._database.pid, signal.SIGCONT)

    def vsctl(self, *command: str) -> str:
        return subprocess.run(
            ["ovs-vsctl", "--timeout=30", f"--db={self.connection}", *command],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    def ports(self) -> list[str]:
        return self.vsctl("list-ports", BRIDGE).split()

    def interface(self, name: str, column: str) -> str:
        return self.vsctl("get", "Interface", name, column)
