# SPDX-License-Identifier: Apache-2.0
"""Lists that change while the kernel writes them."""

import ipaddress
import socket

import pytest
from pyroute2.netlink import NLM_F_DUMP_INTR, NLM_F_MULTI, NLMSG_DONE, nlmsg
from pyroute2.netlink.rtnl import RTM_NEWADDR, RTM_NEWROUTE
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from novadocker.privsep.network import rtnetlink
from novadocker.privsep.network.rtnetlink import Netlink


def listing(address: str, *, change_seen_in: type | None = None) -> bytes:
    """Return one response that lists an address."""
    encoded = b""
    for form, kind in ((ifaddrmsg, RTM_NEWADDR), (nlmsg, NLMSG_DONE)):
        message = form()
        message["header"]["type"] = kind
        message["header"]["flags"] = NLM_F_MULTI
        if form is change_seen_in:
            message["header"]["flags"] |= NLM_F_DUMP_INTR
        if form is ifaddrmsg:
            message["attrs"] = [("IFA_ADDRESS", address)]
        message.encode()
        encoded += bytes(message.data)
    return encoded


def end_of_list() -> bytes:
    message = nlmsg()
    message["header"]["type"], message["header"]["flags"] = NLMSG_DONE, NLM_F_MULTI
    message.encode()
    return bytes(message.data)


@pytest.mark.parametrize("form", [ifaddrmsg, nlmsg])
def test_list_that_changed_is_asked_for_again(kernel: socket.socket, form: type) -> None:
    kernel.send(listing("192.0.2.1", change_seen_in=form))
    kernel.send(listing("192.0.2.2"))
    with Netlink() as netlink:
        (found,) = netlink.dump(rtnetlink.list_addresses())
    assert found.get_attr("IFA_ADDRESS") == "192.0.2.2"


def test_list_that_changes_all_the_time(kernel: socket.socket) -> None:
    for _ in range(5):
        kernel.send(listing("192.0.2.1", change_seen_in=nlmsg))
    with Netlink() as netlink, pytest.raises(OSError, match="changed during each attempt"):
        netlink.dump(rtnetlink.list_addresses())


def test_a_list_is_read_up_to_a_bound(kernel: socket.socket) -> None:
    """A tenant chooses how long the lists of its namespace are."""
    kernel.send(listing("192.0.2.1"))
    part = listing("192.0.2.1")[: -len(end_of_list())]
    # The end of the list never comes, so a reader without a bound would wait for it.
    kernel.send(part * 2)
    with Netlink() as netlink:
        assert len(netlink.dump(rtnetlink.list_addresses(), 1)) == 1
        with pytest.raises(rtnetlink.TooManyError, match="more than 1 entries"):
            netlink.dump(rtnetlink.list_addresses(), 1)


def routes(*destinations: str, flags: int = 0) -> bytes:
    """Return the messages of routes, without the end of the list."""
    encoded = b""
    for destination in destinations:
        network, message = ipaddress.ip_network(destination), rtmsg()
        message["family"] = socket.AF_INET if network.version == 4 else socket.AF_INET6
        message["dst_len"] = network.prefixlen
        message["attrs"] = [("RTA_TABLE", 254)]
        if network.prefixlen:
            message["attrs"].append(("RTA_DST", str(network.network_address)))
        message["header"]["type"] = RTM_NEWROUTE
        message["header"]["flags"] = NLM_F_MULTI | flags
        message.encode()
        encoded += bytes(message.data)
    return encoded


def test_only_routes_to_some_destinations_are_parsed(kernel: socket.socket) -> None:
    """A server can be a router, with hundreds of thousands of routes."""
    wanted = ["0.0.0.0/0", "::/0", "10.9.0.0/16", "2001:db8::/48", "0.0.0.0/1"]
    others = ["10.8.0.0/16", "10.9.0.0/24", "::/1", "2001:db8::/47", "10.9.0.0/32"]
    kernel.send(routes(*others, *wanted, *others))
    kernel.send(end_of_list())
    with Netlink() as netlink:
        found = netlink.dump(rtnetlink.list_routes(), 5, wanted)
    assert [(route.get_attr("RTA_DST"), route["dst_len"]) for route in found] == [
        (None, 0),
        (None, 0),
        ("10.9.0.0", 16),
        ("2001:db8::", 48),
        ("0.0.0.0", 1),
    ]


def test_a_change_beside_the_wanted_routes_is_seen(kernel: socket.socket) -> None:
    kernel.send(routes("10.8.0.0/16", flags=NLM_F_DUMP_INTR) + end_of_list())
    kernel.send(routes("::/0") + end_of_list())
    with Netlink() as netlink:
        assert len(netlink.dump(rtnetlink.list_routes(), 5, ["::/0"])) == 1


def test_routes_to_other_destinations_are_bounded(kernel: socket.socket) -> None:
    # The end of the list never comes.
    kernel.send(routes(*["10.8.0.0/16"] * 101))
    with Netlink() as netlink, pytest.raises(rtnetlink.TooManyError, match="more than 100 entr"):
        netlink.dump(rtnetlink.list_routes(), 2, ["::/0"])
