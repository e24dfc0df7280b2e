# SPDX-License-Identifier: Apache-2.0
"""The cost of a plug and an unplug on a host with many ports, on Open vSwitch and on OVN.

With ``-s``, the tests print the times; ``--ports`` sets the number of ports.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from nova.network import model

from novadocker.privsep.guest import runtime
from novadocker.virt.docker.network import vif as network_vif
from tests.engine import networks
from tests.engine.ovn import BRIDGE, Ovn
from tests.engine.switch import DATAPATH, Switch
from tests.waiting import until

ELSEWHERE = 10
"""Ports of the network on other hosts, for each port on this one."""

# A northd of version 23.03 computes the whole network anew for each port.
UP_SECONDS = 300

MOST_COMPARED = 10
# The driver's CPU time is judged, because other load on the machine changes durations.
SLOWER = 3.0


@dataclass(frozen=True)
class Cost:
    """The cost of one step.

    :ivar seconds: its duration
    :ivar cpu: CPU seconds of this process, which is the driver and os-vif
    """

    seconds: float
    cpu: float


class Clock:
    """The time since the creation of the clock."""

    def __init__(self) -> None:
        self._begin, self._cpu = time.monotonic(), time.process_time()

    def cost(self) -> Cost:
        return Cost(time.monotonic() - self._begin, time.process_time() - self._cpu)


class Ports:
    """Ports of servers with one port each, and the cost of each step."""

    def __init__(self, ovs: Switch, new_uuid: Callable[[], str], ovn: Ovn | None) -> None:
        self._ovs, self._new_uuid, self._ovn = ovs, new_uuid, ovn
        self._made: list[tuple[str, model.VIF]] = []
        self.plugs: list[Cost] = []
        self.ups: list[Cost] = []
        self.unplugs: list[Cost] = []

    def add(self) -> None:
        """Plug a port of a new server, and wait until OVN has its flows in the switch."""
        details = {"datapath_type": DATAPATH, "ovs_hybrid_plug": False}
        high, low = divmod(len(self._made), 250)
        address = f"10.7.{high}.{low + 2}"
        port = networks.simple_vif(address, details=details)
        if self._ovn is not None:
            port["network"]["bridge"] = BRIDGE
            self._ovn.add_port(port["id"], port["address"], address)
        uuid = self._new_uuid()
        self._made.append((uuid, port))
        clock = Clock()
        network_vif.plug_vifs(networks.instance(uuid), model.NetworkInfo([port]))
        self.plugs.append(clock.cost())
        if self._ovn is not None:
            name = port["devname"]
            until(lambda: "ovn-installed" in self._ovs.interface(name, "external_ids"), UP_SECONDS)
            self.ups.append(clock.cost())

    def delete_all(self) -> None:
        """Unplug all ports, the last one first."""
        while self._made:
            uuid, port = self._made.pop()
            clock = Clock()
            network_vif.unplug_vifs(networks.instance(uuid), model.NetworkInfo([port]))
            runtime.delete_namespace(uuid)
            self.unplugs.append(clock.cost())
            if self._ovn is not None:
                self._ovn.nbctl("lsp-del", port["id"])


def show(what: str, few: list[Cost], many: list[Cost]) -> float:
    """Print the medians of a step; return the CPU time beside many ports over that beside few."""
    medians = [
        (
            statistics.median(cost.seconds for cost in costs) * 1000,
            statistics.median(cost.cpu for cost in costs) * 1000,
        )
        for costs in (few, many)
    ]
    for label, (seconds, cpu) in zip(("few", "many"), medians, strict=True):
        print(f"  {what:<10} beside {label:<5}{seconds:>8.1f} ms, CPU time{cpu:>7.1f} ms")
    return medians[1][1] / medians[0][1]


@pytest.mark.parametrize("network", ["ovs", "ovn"])
def test_many_ports_do_not_slow_down_the_next(
    ovs: Switch,
    new_instance_uuid: Callable[[], str],
    pytestconfig: pytest.Config,
    request: pytest.FixtureRequest,
    network: str,
) -> None:
    count = pytestconfig.getoption("--ports")
    ovn = request.getfixturevalue("ovn") if network == "ovn" else None
    if ovn is not None:
        ovn.add_ports_elsewhere(ELSEWHERE * count)
    # The first ports and the last ones have others between them.
    compared = min(MOST_COMPARED, count // 3)
    ports = Ports(ovs, new_instance_uuid, ovn)
    try:
        for _ in range(count):
            ports.add()
    finally:
        ports.delete_all()
        if ovn is not None:
            ovn.delete_ports_elsewhere(ELSEWHERE * count)
    print(f"\n{network}, {count} ports on {DATAPATH}")
    if ovn is not None:
        show("until up", ports.ups[:compared], ports.ups[-compared:])
    assert show("plug", ports.plugs[:compared], ports.plugs[-compared:]) < SLOWER
    assert show("unplug", ports.unplugs[-compared:], ports.unplugs[:compared]) < SLOWER
