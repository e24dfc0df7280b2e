# SPDX-License-Identifier: Apache-2.0
"""Ports on a real OVN, without Neutron: reached, filtered, limited, and plugged during outages.

In the guest the datapath is the kernel's; on other machines it may be Open vSwitch's own.
"""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from nova.network import model

from novadocker.exporter import ovn as exported
from novadocker.exporter import probes
from novadocker.privsep.guest import runtime
from novadocker.state_files.port_rates import PortRate
from novadocker.virt.docker.network import vif as network_vif
from tests.engine import daemons, networks
from tests.engine.switch import DATAPATH, Switch
from tests.waiting import until

# The session's other tests use br-int without a controller.
BRIDGE = "br-ovn"
SOUTHBOUND = "tcp:127.0.0.1:6642"


class Ovn:
    """OVN's databases, northd, and a controller of the session's Open vSwitch."""

    def __init__(self, folder: Path, switch: Switch) -> None:
        folder.mkdir()
        self.folder, self._switch = folder, switch
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("nb", "sb"):
            schema = f"/usr/share/ovn/ovn-{name}.ovsschema"
            command = ["ovsdb-tool", "create", folder / f"{name}.db", schema]
            subprocess.run(command, check=True, capture_output=True)
        settings = {
            "system-id": "host1",
            "ovn-remote": SOUTHBOUND,
            "ovn-encap-type": "geneve",
            "ovn-encap-ip": "127.0.0.1",
            "ovn-bridge": BRIDGE,
            "ovn-bridge-datapath-type": DATAPATH,
        }
        pairs = [f'external_ids:{name}="{value}"' for name, value in settings.items()]
        switch.vsctl("set", "Open_vSwitch", ".", *pairs)
        for name in ("nb", "sb", "northd", "controller"):
            self.start(name)
        until(lambda: BRIDGE in switch.vsctl("list-br").split())
        self.nbctl("ls-add", "network")

    def start(self, name: str) -> None:
        """Start a program: ``nb``, ``sb``, ``northd`` or ``controller``."""
        folder = self.folder
        commands = {
            "nb": ["ovsdb-server", f"{folder}/nb.db", f"--remote=punix:{folder}/nb.sock"],
            "sb": ["ovsdb-server", f"{folder}/sb.db", "--remote=ptcp:6642:127.0.0.1"],
            "northd": [
                "ovn-northd",
                f"--ovnnb-db=unix:{folder}/nb.sock",
                f"--ovnsb-db={SOUTHBOUND}",
            ],
            "controller": ["ovn-controller", self._switch.connection, "--pidfile"],
        }
        made = folder / f"{name}.ctl"
        control = [] if name == "controller" else [f"--unixctl={made}"]
        if name == "controller":
            made = folder / "ovn-controller.pid"
        self._running[name] = daemons.start(
            [
                *("env", f"OVN_RUNDIR={folder}", f"OVS_RUNDIR={self._switch.folder}"),
                *(*commands[name], *control),
            ],
            folder / f"{name}.log",
            made.exists,
        )

    @contextmanager
    def away(self, name: str) -> Iterator[None]:
        """Kill a program during the body."""
        process = self._running.pop(name)
        process.kill()
        process.wait()
        for left in (f"{name}.ctl", "ovn-controller.pid" if name == "controller" else "nothing"):
            (self.folder / left).unlink(missing_ok=True)
        try:
            yield
        finally:
            self.start(name)

    def stop(self) -> None:
        """Stop all programs and delete the bridge."""
        for process in reversed(self._running.values()):
            daemons.stop(process)
        self._switch.vsctl("del-br", BRIDGE)
        self._switch.vsctl("clear", "Open_vSwitch", ".", "external_ids")

    def nbctl(self, *command: str) -> str:
        """Change the northbound database, as Neutron does."""
        connection = f"--db=unix:{self.folder}/nb.sock"
        done = subprocess.run(
            ["ovn-nbctl", "--timeout=30", connection, *command],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()


@pytest.fixture(scope="module")
def ovn(ovs: Switch, state_folder: Path) -> Iterator[Ovn]:
    """Yield an OVN with one network."""
    found = Ovn(state_folder / "ovn", ovs)
    yield found
    found.stop()


Plug = Callable[[str], tuple[str, model.VIF]]


@pytest.fixture
def plug(ovn: Ovn, new_instance_uuid: Callable[[], str]) -> Iterator[Plug]:
    """Yield a function that plugs a port of an address; unplug the ports at the end.

    The function returns the instance's UUID and the port, as Neutron 29 describes it.
    """
    plugged: dict[str, model.VIF] = {}

    def call(address: str) -> tuple[str, model.VIF]:
        details = {"datapath_type": DATAPATH, "ovs_hybrid_plug": False, "ovs_create_tap": True}
        port = networks.simple_vif(address, details=details)
        port["network"]["bridge"] = BRIDGE
        addresses = f"{port['address']} {address}"
        ovn.nbctl(
            *("lsp-add", "network", port["id"], "--", "lsp-set-addresses", port["id"], addresses),
            *("--", "lsp-set-port-security", port["id"], addresses),
        )
        uuid = new_instance_uuid()
        plugged[uuid] = port
        network_vif.plug_vifs(networks.instance(uuid), model.NetworkInfo([port]))
        return uuid, port

    yield call
    for uuid, port in plugged.items():
        network_vif.unplug_vifs(networks.instance(uuid), model.NetworkInfo([port]))
        runtime.delete_namespace(uuid)
        ovn.nbctl("lsp-del", port["id"])


def wait_until_up(ovs: Switch, ovn: Ovn, port: model.VIF) -> None:
    """Wait until OVN has the port's flows in the switch, which Neutron reports to Nova."""
    until(lambda: "ovn-installed" in ovs.interface(port["devname"], "external_ids"))
    until(lambda: ovn.nbctl("lsp-get-up", port["id"]) == "up")


def test_ports_are_reached_and_a_foreign_address_is_not(ovs: Switch, ovn: Ovn, plug: Plug) -> None:
    (first, one), (second, two) = plug("10.7.0.5"), plug("10.7.0.6")
    for port in (one, two):
        wait_until_up(ovs, ovn, port)
        assert networks.host_device(port["devname"])["linkinfo"]["info_kind"] == "veth"
    assert networks.pings(first, "10.7.0.6")
    networks.ip(second, "address", "add", "10.7.0.9/24", "dev", "eth0")
    assert not networks.pings(first, "10.7.0.9")
    assert networks.pings(second, "10.7.0.5")


@pytest.mark.parametrize("program", ["nb", "sb", "northd", "controller"])
def test_a_port_that_is_plugged_during_an_outage(
    ovs: Switch, ovn: Ovn, plug: Plug, program: str
) -> None:
    first, one = plug("10.7.0.5")
    second, two = plug("10.7.0.6")
    for port in (one, two):
        wait_until_up(ovs, ovn, port)
    with ovn.away(program):
        instance, ports = networks.instance(second), model.NetworkInfo([two])
        network_vif.unplug_vifs(instance, ports)
        network_vif.plug_vifs(instance, ports)
    wait_until_up(ovs, ovn, two)
    assert networks.host_device(two["devname"])["linkinfo"]["info_kind"] == "veth"
    until(lambda: networks.pings(first, "10.7.0.6"))


def test_the_exporter_shows_the_controller_and_limits(ovs: Switch, ovn: Ovn, plug: Plug) -> None:
    _, port = plug("10.7.0.5")
    wait_until_up(ovs, ovn, port)
    probes.ask_agent(ovs.folder, ovn.folder)
    meters = exported.Meters(ovs.connection, ovn.folder)
    assert meters.read_rates() == {}
    for direction, end, rate in (("from-lport", "inport", 800), ("to-lport", "outport", 1600)):
        match = f'{end} == "{port["id"]}"'
        ovn.nbctl("qos-add", "network", direction, "2002", match, f"rate={rate}")
    limits = {port["devname"]: PortRate(received=200_000, sent=100_000)}
    until(lambda: meters.read_rates() == limits)
    ovn.nbctl("qos-del", "network")
    until(lambda: meters.read_rates() == {})
    with ovn.away("controller"), pytest.raises(FileNotFoundError):
        probes.ask_agent(ovs.folder, ovn.folder)
