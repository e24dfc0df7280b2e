# SPDX-License-Identifier: Apache-2.0
"""The differences between a device and its NIC, with and without settings of the tenant's."""

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyroute2.netlink import NLM_F_MULTI, NLMSG_DONE, nlmsg
from pyroute2.netlink.rtnl import RTM_NEWADDR
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg

from novadocker.privsep.network import given, link, rtnetlink
from novadocker.privsep.network.types import Nic, Route

DEFAULT = Route("0.0.0.0/0", "10.0.0.1")
NIC = Nic(
    port_id="port",
    host_device="tap1",
    guest_device="eth0",
    mac="fa:16:3e:00:00:05",
    mtu=1450,
    addresses=("10.0.0.5/24", "2001:db8::5/64"),
    routes=(DEFAULT,),
)
OLD_ADDRESS, OLD_ROUTE = "10.0.0.6/24", Route("10.9.0.0/16", "10.0.0.1")
RECORD = {
    "eth0": given.Given(
        frozenset({*NIC.addresses, OLD_ADDRESS}), frozenset({*NIC.routes, OLD_ROUTE})
    )
}
VIP, OWN_ROUTE = "10.0.0.250/32", Route("192.0.2.0/24", "10.0.0.1")


def changes(
    addresses: set[str], routes: set[Route], record: given.Record | None = RECORD
) -> link.Changes:
    device = link.Device(index=2, peer=None, mac=NIC.mac, mtu=1450, up=True)
    state = link.State(
        devices={"eth0": device},
        addresses={2: frozenset(addresses)},
        routes={2: frozenset(routes)},
    )
    return link.changes_of(NIC, state, record)


def test_what_the_tenant_added_stays() -> None:
    found = changes({*NIC.addresses, VIP, "fe80::1/64"}, {DEFAULT, OWN_ROUTE})
    assert not found.needed


def test_what_neutron_took_goes() -> None:
    found = changes(
        {*NIC.addresses, VIP, OLD_ADDRESS, "fe80::1/64"}, {DEFAULT, OWN_ROUTE, OLD_ROUTE}
    )
    assert (found.extra_addresses, found.extra_routes) == ({OLD_ADDRESS}, {OLD_ROUTE})
    assert found.removes


def test_what_neutron_gave_comes_back() -> None:
    found = changes({VIP}, {OWN_ROUTE})
    assert (found.missing_addresses, found.missing_routes) == (NIC.addresses, NIC.routes)
    assert not found.removes


def test_a_route_of_the_tenant_to_the_same_destination_stays() -> None:
    assert not changes({*NIC.addresses}, {Route("0.0.0.0/0", "10.0.0.250")}).needed


def test_an_address_with_another_prefix_makes_room() -> None:
    found = changes({"10.0.0.5/24", "2001:db8::5/128"}, {DEFAULT})
    assert found.extra_addresses == {"2001:db8::5/128"}
    assert found.missing_addresses == ("2001:db8::5/64",)


def test_without_a_record_nothing_else_stays() -> None:
    found = changes({*NIC.addresses, VIP}, {DEFAULT, OWN_ROUTE}, record=None)
    assert (found.extra_addresses, found.extra_routes) == ({VIP}, {OWN_ROUTE})


def test_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(given, "FOLDER", tmp_path / "given")
    assert given.read("nova-1") is None
    record = given.merged(RECORD, {"eth1": given.Given(routes=frozenset([Route("::/0", None)]))})
    given.write("nova-1", record)
    assert given.read("nova-1") == record
    given.write("nova-1", given.of_nics([NIC], record))
    assert given.read("nova-1") == {
        "eth0": given.Given(frozenset(NIC.addresses), frozenset(NIC.routes))
    }
    for _ in range(2):
        given.forget("nova-1")
    assert given.read("nova-1") is None


@pytest.mark.parametrize(
    ("attributes", "address"),
    [
        ({"IFA_LOCAL": "10.0.0.5", "IFA_ADDRESS": "10.0.0.5"}, "10.0.0.5/32"),
        ({"IFA_LOCAL": "10.0.0.5", "IFA_ADDRESS": "10.0.0.6"}, "10.0.0.5/32 peer 10.0.0.6"),
        ({"IFA_LOCAL": "10.0.0.5"}, "10.0.0.5/32 peer 0.0.0.0"),
        ({"IFA_ADDRESS": "10.0.0.6"}, "0.0.0.0/32 peer 10.0.0.6"),
        ({}, "0.0.0.0/32"),
        ({"IFA_ADDRESS": "fd00::5"}, "fd00::5/32"),
        ({"IFA_LOCAL": "fd00::5", "IFA_ADDRESS": "fd00::6"}, "fd00::5/32 peer fd00::6"),
    ],
)
def test_addresses_of_a_tenant(
    kernel: socket.socket, attributes: dict[str, str], address: str
) -> None:
    """The kernel omits an address of 0.0.0.0, which a tenant can add."""
    message, end = ifaddrmsg(), nlmsg()
    message["family"] = socket.AF_INET6 if "::" in address else socket.AF_INET
    message["prefixlen"], message["index"] = 32, 2
    message["attrs"] = list(attributes.items())
    for form, kind in ((message, RTM_NEWADDR), (end, NLMSG_DONE)):
        form["header"]["type"], form["header"]["flags"] = kind, NLM_F_MULTI
        form.encode()
    kernel.send(bytes(message.data) + bytes(end.data))
    kernel.send(bytes(end.data))
    with rtnetlink.Netlink() as guest:
        assert link.read_state(guest, [], None).addresses == {2: {address}}


def test_an_address_with_a_peer_is_the_tenant_s() -> None:
    peers = {"10.9.9.9/32 peer 0.0.0.0", "10.0.0.5/24 peer 10.9.9.9"}
    assert changes({*NIC.addresses, *peers}, {DEFAULT}, record=None).extra_addresses == peers
    found = changes({*NIC.addresses, *peers}, {DEFAULT})
    # Only Neutron's address itself has to make room.
    assert found.extra_addresses == {"10.0.0.5/24 peer 10.9.9.9"}


@pytest.mark.parametrize("record", [RECORD, None])
def test_a_route_that_nobody_knows_now_stays(record: given.Record | None) -> None:
    nic = replace(NIC, unknown_destinations=(OLD_ROUTE.destination,))
    device = link.Device(index=2, peer=None, mac=NIC.mac, mtu=1450, up=True)
    for routes in ({DEFAULT, OLD_ROUTE}, {DEFAULT}):
        addresses, found = {2: frozenset(NIC.addresses)}, {2: frozenset(routes)}
        state = link.State(devices={"eth0": device}, addresses=addresses, routes=found)
        assert not link.changes_of(nic, state, record).needed
    # The record still has the route, so that it does not become the tenant's.
    assert given.of_nics([nic], RECORD)["eth0"].routes == {DEFAULT, OLD_ROUTE}


def rule(fields: dict[str, int], attributes: dict[str, Any]) -> Any:
    """Return the message of a rule as the kernel encodes it."""
    message = fibmsg()
    plain = {"FRA_TABLE": 254, "FRA_SUPPRESS_PREFIXLEN": 0xFFFFFFFF, "FRA_PROTOCOL": 2}
    for name, value in {"family": socket.AF_INET, "table": 254, "action": 1, **fields}.items():
        message[name] = value
    message["attrs"] = list({**plain, "FRA_PRIORITY": 32766, **attributes}.items())
    message.encode()
    decoded = fibmsg(message.data)
    decoded.decode()
    return decoded


@pytest.mark.parametrize(
    ("fields", "attributes"),
    [
        ({"flags": 2}, {}),
        ({"action": 6}, {}),
        ({"tos": 4}, {}),
        ({"dst_len": 16}, {"FRA_DST": "10.9.0.0"}),
        ({"src_len": 16}, {"FRA_SRC": "10.9.0.0"}),
        ({}, {"FRA_IIFNAME": "eth0"}),
        ({}, {"FRA_FWMARK": 7}),
        ({}, {"FRA_SUPPRESS_PREFIXLEN": 0}),
    ],
)
def test_a_rule_of_a_tenant_is_not_the_kernel_s(
    fields: dict[str, int], attributes: dict[str, Any]
) -> None:
    assert link.rule_of(rule({}, {})) == (socket.AF_INET, 32766, rtnetlink.TABLE_MAIN)
    assert link.rule_of(rule(fields, attributes)) is None
