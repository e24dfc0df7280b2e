# SPDX-License-Identifier: Apache-2.0
"""Ports on a real OVN, without Neutron: reached, filtered, limited, and plugged during outages.

In the guest the datapath is the kernel's; on other machines it may be Open vSwitch's own.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nova.network import model
from oslo_upgradecheck.upgradecheck import Code

from novadocker.cmd import checks
from novadocker.cmd import probes as status_probes
from novadocker.exporter import ovn as exported
from novadocker.exporter import probes
from novadocker.privsep.guest import runtime
from novadocker.state_files.port_rates import PortRate
from novadocker.virt.docker.network import vif as network_vif
from tests.engine import networks
from tests.engine.ovn import BRIDGE, CHASSIS, NETWORK, SOUTHBOUND, FarHost, Ovn
from tests.engine.switch import DATAPATH, Switch
from tests.waiting import until

# What Neutron sets on a network of geneve if packets between hosts have at most 1,500 bytes.
MTU = 1442

Plug = Callable[[str], tuple[str, model.VIF]]


@pytest.fixture
def plug(ovn: Ovn, new_instance_uuid: Callable[[], str]) -> Iterator[Plug]:
    """Yield a function that plugs a port of an address; unplug the ports at the end.

    The function returns the instance's UUID and the port, as Neutron 29 describes it.
    """
    plugged: dict[str, model.VIF] = {}

    def call(address: str) -> tuple[str, model.VIF]:
        details = {"datapath_type": DATAPATH, "ovs_hybrid_plug": False, "ovs_create_tap": True}
        port = networks.simple_vif(address, details=details, mtu=MTU)
        port["network"]["bridge"] = BRIDGE
        ovn.add_port(port["id"], port["address"], address)
        instance = new_instance_uuid()
        plugged[instance] = port
        network_vif.plug_vifs(networks.instance(instance), model.NetworkInfo([port]))
        return instance, port

    yield call
    for instance, port in plugged.items():
        ovn.nbctl("lsp-del", port["id"])
        network_vif.unplug_vifs(networks.instance(instance), model.NetworkInfo([port]))
        runtime.delete_namespace(instance)


def wait_until_up(ovs: Switch, ovn: Ovn, port: model.VIF) -> None:
    """Wait until OVN has the port's flows in the switch, which Neutron reports to Nova."""
    until(lambda: "ovn-installed" in ovs.interface(port["devname"], "external_ids"))
    until(lambda: ovn.is_up(port["id"]))


def test_ports_are_reached_and_a_foreign_address_is_not(ovs: Switch, ovn: Ovn, plug: Plug) -> None:
    (first, one), (second, two) = plug("10.7.0.5"), plug("10.7.0.6")
    for port in (one, two):
        wait_until_up(ovs, ovn, port)
        assert networks.host_device(port["devname"])["linkinfo"]["info_kind"] == "veth"
    assert networks.pings(first, "10.7.0.6")
    networks.ip(second, "address", "add", "10.7.0.9/24", "dev", "eth0")
    assert not networks.pings(first, "10.7.0.9")
    assert networks.pings(second, "10.7.0.5")


@pytest.fixture
def far_host(ovn: Ovn, state_folder: Path) -> Iterator[FarHost]:
    """Yield another host."""
    # The prefix makes the session delete the namespace if it is interrupted.
    mark = (state_folder / "mark").read_text()
    found = FarHost(ovn, state_folder / "host2", f"nova-{mark}-host2")
    yield found
    found.stop()


def test_a_tunnel_to_another_host(ovs: Switch, ovn: Ovn, plug: Plug, far_host: FarHost) -> None:
    server, near = plug("10.7.0.5")
    far_host.add_port("fa:16:3e:00:00:06", "10.7.0.6", MTU)
    wait_until_up(ovs, ovn, near)
    until(lambda: ovn.is_up(far_host.port))
    until(lambda: networks.pings(server, "10.7.0.6"))
    full = ("-M", "do", "-s", str(MTU - 28))
    assert far_host.pings("10.7.0.5", *full)
    assert networks.run(server, "ping", "-c", "1", "-w", "3", *full, "10.7.0.6").returncode == 0
    # The switch forwards packets without the controller, and drops those of a foreign address.
    with ovn.away("controller"):
        assert far_host.pings("10.7.0.5", *full)
        networks.ip(server, "address", "add", "10.7.0.9/24", "dev", "eth0")
        assert not far_host.pings("10.7.0.9")


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


def test_a_port_that_is_bound_to_another_host(ovs: Switch, ovn: Ovn, plug: Plug) -> None:
    server, here = plug("10.7.0.5")
    _, port = plug("10.7.0.6")
    for plugged in (here, port):
        wait_until_up(ovs, ovn, plugged)
    # Neutron names the host in this option.
    ovn.nbctl("lsp-set-options", port["id"], "requested-chassis=elsewhere")
    until(lambda: not ovn.is_up(port["id"]))
    until(lambda: not networks.pings(server, "10.7.0.6"))
    # A reverted move binds the port to this host again.
    ovn.nbctl("lsp-set-options", port["id"])
    until(lambda: ovn.is_up(port["id"]))
    until(lambda: networks.pings(server, "10.7.0.6"))


def test_the_status_check_reads_the_name_of_the_chassis(ovs: Switch, ovn: Ovn) -> None:
    chassis = status_probes.read_chassis(ovs.connection)
    assert chassis == checks.Chassis(SOUTHBOUND, CHASSIS)
    assert checks.check_ovn(chassis, CHASSIS, "web-1").code is Code.SUCCESS
    mismatch = checks.check_ovn(chassis, "web-1", "web-1")
    assert mismatch.code is Code.FAILURE
    assert f"OVN knows this host as {CHASSIS}, nova-compute as web-1" in mismatch.details


def test_the_exporter_shows_the_controller_and_limits(ovs: Switch, ovn: Ovn, plug: Plug) -> None:
    _, port = plug("10.7.0.5")
    wait_until_up(ovs, ovn, port)
    probes.ask_agent(ovs.folder, ovn.folder)
    meters = exported.Meters(ovs.connection, ovn.folder)
    assert meters.read_rates() == {}
    for direction, end, rate in (("from-lport", "inport", 800), ("to-lport", "outport", 1600)):
        match = f'{end} == "{port["id"]}"'
        ovn.nbctl("qos-add", NETWORK, direction, "2002", match, f"rate={rate}")
    limits = {port["devname"]: PortRate(received=200_000, sent=100_000)}
    until(lambda: meters.read_rates() == limits)
    ovn.nbctl("qos-del", NETWORK)
    until(lambda: meters.read_rates() == {})
    with ovn.away("controller"), pytest.raises(FileNotFoundError):
        probes.ask_agent(ovs.folder, ovn.folder)
