# SPDX-License-Identifier: Apache-2.0
"""Batches of requests to the kernel."""

import errno
import subprocess
from collections.abc import Iterator

import pytest

from novadocker.linux import namespaces
from novadocker.privsep.network import link as network_link
from novadocker.privsep.network import rtnetlink
from novadocker.privsep.network.rtnetlink import Netlink
from tests.engine import networks

BRIDGE = "netlink0"


@pytest.fixture
def netlink() -> Iterator[Netlink]:
    with Netlink() as opened:
        yield opened
    assert opened._socket.fileno() == -1


@pytest.fixture
def bridge() -> Iterator[str]:
    yield BRIDGE
    subprocess.run(["ip", "link", "delete", BRIDGE], check=True)


def test_each_of_many_requests_has_its_own_answer(netlink: Netlink) -> None:
    names = ["lo", "absent"] * 100
    answers = netlink.ask(*map(rtnetlink.get_link, names), ignoring=errno.ENODEV)
    shown = [[link.get_attr("IFLA_IFNAME") for link in found] for found in answers]
    assert shown == [["lo"], []] * 100


def test_refusal_is_raised_and_keeps_nothing_else_from_being_done(
    netlink: Netlink, bridge: str
) -> None:
    absent = rtnetlink.set_link(1 << 30, up=True)
    with pytest.raises(OSError, match="No such device") as caught:
        netlink.ask(absent, rtnetlink.add_bridge(bridge))
    assert caught.value.errno == errno.ENODEV
    index = networks.host_device(bridge)["ifindex"]
    with pytest.raises(FileExistsError):
        netlink.ask(rtnetlink.add_bridge(bridge), absent, ignoring=errno.ENODEV)
    # No response of the failed batch may be taken for this request's.
    ((link,),) = netlink.ask(rtnetlink.get_link(bridge))
    assert link["index"] == index


def test_lists_of_any_length(netlink: Netlink, bridge: str) -> None:
    netlink.ask(rtnetlink.add_bridge(bridge))
    index = network_link.find_link(netlink, bridge)["index"]
    wanted = {f"10.6.{third}.{last}" for third in range(4) for last in range(1, 251)}
    netlink.ask(*(rtnetlink.add_address(index, f"{address}/32") for address in wanted))
    found = netlink.dump(rtnetlink.list_addresses())
    assert {a.get_attr("IFA_LOCAL") for a in found if a["index"] == index} == wanted


def test_socket_stays_in_its_namespace(netlink: Netlink, bridge: str) -> None:
    netlink.ask(rtnetlink.add_bridge(bridge))

    def elsewhere() -> tuple[bool, bool]:
        namespaces.enter_new_namespace()
        with Netlink() as own:
            return (
                network_link.find_link(own, bridge) is not None,
                network_link.find_link(netlink, bridge) is not None,
            )

    assert namespaces.run_in_thread(elsewhere) == (False, True)
