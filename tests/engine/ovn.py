# SPDX-License-Identifier: Apache-2.0
"""OVN without Neutron: its databases, northd, and hosts with a controller each."""

import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.engine import daemons
from tests.engine.switch import DATAPATH, Switch
from tests.waiting import until

# The session's other tests use br-int without a controller.
BRIDGE = "br-ovn"
NETWORK = "network"
"""The logical switch of all ports."""

TUNNEL_BRIDGE = "br-phy"
"""The bridge with the tunnels' address, which the user-space datapath requires."""

CHASSIS = "host1"
"""The name of the session's switch in OVN."""

# The exporter reads the database over TCP.
SOUTHBOUND = "tcp:127.0.0.1:6642"

_BATCH = 100


class Ovn:
    """OVN's databases, northd, and a controller of the session's Open vSwitch."""

    def __init__(self, folder: Path, switch: Switch) -> None:
        # A module of tests leaves the logs for the next one.
        folder.mkdir(exist_ok=True)
        self.folder, self.switch = folder, switch
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("nb", "sb"):
            schema = f"/usr/share/ovn/ovn-{name}.ovsschema"
            (folder / f"{name}.db").unlink(missing_ok=True)
            command = ["ovsdb-tool", "create", folder / f"{name}.db", schema]
            subprocess.run(command, check=True, capture_output=True)
        set_chassis(switch, CHASSIS, SOUTHBOUND, "127.0.0.1")
        for name in ("nb", "sb", "northd", "controller"):
            self.start(name)
        until(lambda: BRIDGE in switch.vsctl("list-br").split())
        self.nbctl("ls-add", NETWORK)

    def start(self, name: str) -> None:
        """Start a program: ``nb``, ``sb``, ``northd`` or ``controller``."""
        folder = self.folder
        if name == "controller":
            self._running[name] = start_controller(folder, self.switch)
            return
        southbound = f"{folder}/sb.sock"
        commands = {
            "nb": ["ovsdb-server", f"{folder}/nb.db", f"--remote=punix:{folder}/nb.sock"],
            "sb": [
                *("ovsdb-server", f"{folder}/sb.db", f"--remote=punix:{southbound}"),
                "--remote=ptcp:6642:127.0.0.1",
            ],
            "northd": [
                *("ovn-northd", f"--ovnnb-db=unix:{folder}/nb.sock"),
                f"--ovnsb-db=unix:{southbound}",
            ],
        }
        control = folder / f"{name}.ctl"
        self._running[name] = daemons.start(
            ["env", f"OVN_RUNDIR={folder}", *commands[name], f"--unixctl={control}"],
            folder / f"{name}.log",
            control.exists,
        )

    @contextmanager
    def away(self, name: str) -> Iterator[None]:
        """Kill a program during the body."""
        process = self._running.pop(name)
        process.kill()
        process.wait()
        for left in (f"{name}.ctl", f"{name}.sock"):
            (self.folder / left).unlink(missing_ok=True)
        if name == "controller":
            (self.folder / "ovn-controller.pid").unlink()
        try:
            yield
        finally:
            self.start(name)

    def stop(self) -> None:
        """Stop all programs and delete the bridge."""
        for process in reversed(self._running.values()):
            daemons.stop(process)
        self.switch.vsctl("del-br", BRIDGE)
        self.switch.vsctl("clear", "Open_vSwitch", ".", "external_ids")

    def add_port(self, port: str, mac: str, address: str) -> None:
        """Create a port with port security in the northbound database, as Neutron does."""
        addresses = f"{mac} {address}"
        self.nbctl(
            *("lsp-add", NETWORK, port, "--", "lsp-set-addresses", port, addresses),
            *("--", "lsp-set-port-security", port, addresses),
        )

    def add_ports_elsewhere(self, count: int) -> None:
        """Create ports that are bound to a host that does not exist."""
        self._sbctl("chassis-add", "elsewhere", "geneve", "172.31.253.9")
        for numbers in _batches(count):
            created, bound = [], []
            for number in numbers:
                name = f"elsewhere{number}"
                high, low = divmod(number, 250)
                addresses = f"fa:16:3f:00:{high:02x}:{low:02x} 10.7.{100 + high}.{low}"
                created += ["--", "lsp-add", NETWORK, name]
                created += ["--", "lsp-set-addresses", name, addresses]
                bound += ["--", "lsp-bind", name, "elsewhere"]
            self.nbctl("--wait=sb", *created[1:])
            self._sbctl(*bound[1:])

    def delete_ports_elsewhere(self, count: int) -> None:
        """Delete these ports and their host."""
        for numbers in _batches(count):
            deleted = [
                word for number in numbers for word in ("--", "lsp-del", f"elsewhere{number}")
            ]
            self.nbctl("--wait=sb", *deleted[1:])
        self._sbctl("chassis-del", "elsewhere")

    def is_up(self, port: str) -> bool:
        """Return True if a host has the flows of a port, which Neutron reports to Nova."""
        return self.nbctl("lsp-get-up", port) == "up"

    def nbctl(self, *command: str) -> str:
        """Read or change the northbound database, as Neutron does."""
        return self._ctl("nb", command)

    def _sbctl(self, *command: str) -> str:
        return self._ctl("sb", command)

    def _ctl(self, database: str, command: Sequence[str]) -> str:
        connection = f"--db=unix:{self.folder}/{database}.sock"
        done = subprocess.run(
            [f"ovn-{database}ctl", "--timeout=60", connection, *command],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()


def _batches(count: int) -> Iterator[range]:
    """Return ranges of numbers; the time of a transaction grows by the square of its size."""
    for start in range(0, count, _BATCH):
        yield range(start, min(start + _BATCH, count))


def set_chassis(switch: Switch, name: str, southbound: str, address: str) -> None:
    """Set what a host's controller reads from its switch.

    :param address: the host's end of tunnels
    """
    settings = {
        "system-id": name,
        "hostname": name,
        "ovn-remote": southbound,
        "ovn-encap-type": "geneve",
        "ovn-encap-ip": address,
        "ovn-bridge": BRIDGE,
        "ovn-bridge-datapath-type": DATAPATH,
    }
    pairs = [f'external_ids:{key}="{value}"' for key, value in settings.items()]
    switch.vsctl("set", "Open_vSwitch", ".", *pairs)


def start_controller(folder: Path, switch: Switch) -> subprocess.Popen[bytes]:
    """Start the controller of a host.

    :param folder: directory of its sockets and its pid file
    """
    return daemons.start(
        [
            *switch.enter,
            *("env", f"OVN_RUNDIR={folder}", f"OVS_RUNDIR={switch.folder}"),
            *("ovn-controller", switch.connection, "--pidfile"),
        ],
        folder / "controller.log",
        (folder / "ovn-controller.pid").exists,
    )


def connect_to_tunnels(switch: Switch, cable: str, address: str) -> None:
    """Give a host an address for tunnels over a device, on a bridge of its switch.

    :param cable: name of the device
    :param address: address with the length of its prefix
    """
    switch.vsctl(
        *("add-br", TUNNEL_BRIDGE, "--", "set", "bridge", TUNNEL_BRIDGE),
        *(f"datapath_type={DATAPATH}", "--", "add-port", TUNNEL_BRIDGE, cable),
    )
    for words in (
        ("address", "add", address, "dev", TUNNEL_BRIDGE),
        ("link", "set", TUNNEL_BRIDGE, "up"),
        ("link", "set", cable, "up"),
    ):
        subprocess.run([*switch.enter, "ip", *words], check=True)


class FarHost:
    """Another host of an OVN: a switch and a controller in their own network namespace.

    :ivar port: id of the only port on the host
    :param name: name of the network namespace
    """

    def __init__(self, ovn: Ovn, folder: Path, name: str) -> None:
        folder.mkdir()
        self._ovn, self.name = ovn, name
        self.port = str(uuid.uuid4())
        _run("ip", "netns", "add", name)
        _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "link", "add", "cable1", "type", "veth", "peer", "cable2", "netns", name)
        self.switch = Switch(folder / "ovs", f"/run/netns/{name}")
        self.switch.start()
        connect_to_tunnels(ovn.switch, "cable1", "172.31.253.1/24")
        connect_to_tunnels(self.switch, "cable2", "172.31.253.2/24")
        set_chassis(ovn.switch, CHASSIS, SOUTHBOUND, "172.31.253.1")
        set_chassis(self.switch, "host2", f"unix:{ovn.folder}/sb.sock", "172.31.253.2")
        self._controller = start_controller(folder, self.switch)
        until(lambda: BRIDGE in self.switch.vsctl("list-br").split())

    def add_port(self, mac: str, address: str, mtu: int) -> None:
        """Create the host's port, and its device in the host's namespace."""
        self._ovn.add_port(self.port, mac, address)
        device = f"tap{self.port}"[:14]
        self.switch.vsctl(
            *("add-port", BRIDGE, device, "--", "set", "interface", device, "type=internal"),
            f"external_ids:iface-id={self.port}",
        )
        _run("ip", "-n", self.name, "link", "set", device, "address", mac, "mtu", str(mtu), "up")
        _run("ip", "-n", self.name, "address", "add", f"{address}/24", "dev", device)

    def pings(self, address: str, *options: str) -> bool:
        """Return True if an address answers to a ping from the host's namespace."""
        command = ["ping", "-c", "1", "-w", "3", *options, address]
        return subprocess.run([*self.switch.enter, *command], capture_output=True).returncode == 0

    def stop(self) -> None:
        """Stop the host's programs, and delete its namespace and the first host's tunnels."""
        self._ovn.nbctl("--if-exists", "lsp-del", self.port)
        daemons.stop(self._controller)
        for bridge in (BRIDGE, TUNNEL_BRIDGE):
            self.switch.vsctl("del-br", bridge)
        self.switch.stop()
        self._ovn.switch.vsctl("del-br", TUNNEL_BRIDGE)
        _run("ip", "link", "delete", "cable1")
        _run("ip", "netns", "delete", self.name)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
