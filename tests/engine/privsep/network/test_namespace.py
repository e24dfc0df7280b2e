# SPDX-License-Identifier: Apache-2.0
"""Network devices that the driver wires, read back from the kernel by iproute2."""

import ipaddress
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from nova import conf

import novadocker
from novadocker import privsep
from novadocker.linux import namespaces
from novadocker.privsep.guest import runtime
from novadocker.privsep.network import link as link_module
from novadocker.privsep.network import namespace, wiring
from novadocker.privsep.network.types import Nic, Route
from novadocker.state_files import namespaces as marks
from tests.engine import networks
from tests.waiting import until

# From linux/if_ether.h.
ETH_P_ALL = 3
# From RFC 4861, section 4.4.
NEIGHBOUR_ADVERTISEMENT = 136

PORT = "0e6e0b4b-7a41-4f0b-9f1a-0f64e1f5a1c1"
FIRST = Nic(
    port_id=PORT,
    host_device="tap0e6e0b4b-7a",
    guest_device="eth0",
    mac="fa:16:3e:00:00:05",
    mtu=1450,
    addresses=("10.7.0.5/24", "10.7.0.6/24", "2001:db8::5/64"),
    routes=(
        Route("0.0.0.0/0", "10.7.0.1"),
        Route("::/0", "fe80::1"),
        Route("192.168.0.0/16", "10.7.0.9"),
        Route("172.16.0.0/12", None),
        Route("2001:db8:1::/48", "2001:db8::9"),
    ),
)
SECOND = Nic(
    port_id=PORT[:-1] + "2",
    host_device="tap0e6e0b4b-7b",
    guest_device="eth1",
    mac="fa:16:3e:00:00:06",
    mtu=None,
    addresses=("10.8.0.5/32", "2001:db8:8::5/128"),
    # These gateways are outside the subnets, so they are neighbours on the link.
    routes=(Route("10.9.0.0/16", "10.8.0.1"), Route("2001:db8:9::/48", "2001:db8:8::1")),
)


@pytest.fixture
def uuid(instance_uuid: str) -> Iterator[str]:
    yield instance_uuid
    for nic in (FIRST, SECOND):
        namespace.unwire_nic(instance_uuid, nic.host_device)
    runtime.delete_namespace(instance_uuid)


def wire(uuid: str, *nics: Nic, keep_own: bool = False) -> tuple[str, ...]:
    ports: tuple[str, ...] = namespace.wire_nics(uuid, [asdict(nic) for nic in nics], keep_own)
    return ports


def addresses(uuid: str, device: str) -> set[str]:
    (shown,) = networks.ip(uuid, "address", "show", device)
    return {
        f"{address['local']}/{address['prefixlen']}"
        for address in shown["addr_info"]
        if address["scope"] == "global"
    }


def routes(uuid: str) -> set[tuple[str, str | None, str | None]]:
    shown = networks.ip(uuid, "-4", "route") + networks.ip(uuid, "-6", "route")
    return {
        (route["dst"], route.get("gateway"), route.get("dev"))
        for route in shown
        if route["protocol"] != "kernel"
    }


def link(uuid: str, device: str) -> dict[str, object]:
    (shown,) = networks.ip(uuid, "link", "show", device)
    found: dict[str, object] = shown
    return found


def test_namespace_comes_and_goes(uuid: str) -> None:
    assert not namespaces.is_namespace(namespace.namespace_path(uuid))
    namespace.wire_nics(uuid, [])
    assert namespaces.is_namespace(namespace.namespace_path(uuid))
    assert [shown["ifname"] for shown in networks.ip(uuid, "address", "show", "up")] == ["lo"]
    assert networks.pings(uuid, "127.0.0.1")
    inode = os.stat(namespace.namespace_path(uuid)).st_ino
    namespace.wire_nics(uuid, [])
    assert os.stat(namespace.namespace_path(uuid)).st_ino == inode
    runtime.delete_namespace(uuid)
    assert not os.path.exists(namespace.namespace_path(uuid))
    runtime.delete_namespace(uuid)


def test_namespace_of_another_program_stays(uuid: str) -> None:
    path = namespace.namespace_path(uuid)
    name = os.path.basename(path)
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        assert uuid not in marks.marked()
        runtime.delete_namespace(uuid)
        assert namespaces.is_namespace(path)
        # The namespace has the name of an instance of Nova, so the driver uses it.
        namespace.wire_nics(uuid, [])
        assert uuid in marks.marked()
        runtime.delete_namespace(uuid)
        assert not os.path.exists(path)
        assert uuid not in marks.marked()
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def test_namespace_of_an_earlier_driver_is_deleted(uuid: str) -> None:
    namespace.wire_nics(uuid, [])
    path = namespace.namespace_path(uuid)
    marks.unmark(path)
    container_id = os.urandom(32).hex()
    runtime.bind_container(container_id, uuid)
    runtime.delete_namespace(uuid)
    assert not os.path.exists(path)


def test_file_left_by_a_cut_off_creation(uuid: str) -> None:
    namespace.wire_nics(uuid, [])
    runtime.delete_namespace(uuid)
    Path(namespace.namespace_path(uuid)).touch()
    assert not namespaces.is_namespace(namespace.namespace_path(uuid))
    namespace.wire_nics(uuid, [])
    assert namespaces.is_namespace(namespace.namespace_path(uuid))


def test_everything_as_asked(uuid: str) -> None:
    assert wire(uuid, FIRST, SECOND) == (FIRST.port_id, SECOND.port_id)
    shown = [(found["ifname"], found["address"]) for found in networks.ip(uuid, "link")]
    assert shown[1:] == [("eth0", FIRST.mac), ("eth1", SECOND.mac)]
    assert link(uuid, "eth0")["mtu"] == 1450
    assert link(uuid, "eth1")["mtu"] == 1500
    assert addresses(uuid, "eth0") == set(FIRST.addresses)
    assert addresses(uuid, "eth1") == set(SECOND.addresses)
    assert routes(uuid) == {
        ("default", "10.7.0.1", "eth0"),
        ("default", "fe80::1", "eth0"),
        ("192.168.0.0/16", "10.7.0.9", "eth0"),
        ("172.16.0.0/12", None, "eth0"),
        ("2001:db8:1::/48", "2001:db8::9", "eth0"),
        ("10.9.0.0/16", "10.8.0.1", "eth1"),
        ("2001:db8:9::/48", "2001:db8:8::1", "eth1"),
    }
    for device in ("eth0", "eth1"):
        assert "LOWER_UP" in link(uuid, device)["flags"]  # type: ignore[operator]


def test_addresses_of_ipv6_are_usable_at_once_and_only_neutron_s(uuid: str) -> None:
    wire(uuid, FIRST)
    (shown,) = networks.ip(uuid, "-6", "address", "show", "eth0")
    (address,) = (found for found in shown["addr_info"] if found["scope"] == "global")
    assert (address.get("nodad"), address.get("tentative")) == (True, None)
    for key in ("accept_ra", "autoconf", "accept_dad"):
        path = f"/proc/sys/net/ipv6/conf/eth0/{key}"
        assert networks.run(uuid, "cat", path).stdout == "0\n"


def test_announcement(uuid: str) -> None:
    wire(uuid, FIRST, SECOND)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as receiver:
        receiver.bind((FIRST.host_device, 0))
        receiver.settimeout(10)
        namespace.announce_nics(uuid, ["eth0", "eth2"])
        told: dict[str, str] = {}
        while told.keys() != {"10.7.0.5", "10.7.0.6", "2001:db8::5"}:
            frame = receiver.recv(2048)
            kind, body = frame[12:14], frame[14:]
            if kind == b"\x08\x06":
                # A gratuitous ARP request has the same sender and target address.
                assert body[14:18] == body[24:28]
                told[str(ipaddress.ip_address(body[14:18]))] = body[8:14].hex(":")
            elif kind == b"\x86\xdd" and body[40] == NEIGHBOUR_ADVERTISEMENT:
                target = ipaddress.ip_address(body[48:64])
                if not target.is_link_local:
                    told[str(target)] = body[66:72].hex(":")
    assert set(told.values()) == {FIRST.mac}


def test_host_end(uuid: str) -> None:
    wire(uuid, FIRST)
    shown = networks.host_device(FIRST.host_device)
    assert shown["mtu"] == 1450
    assert "LOWER_UP" in shown["flags"]
    path = Path(f"/proc/sys/net/ipv6/conf/{FIRST.host_device}/disable_ipv6")
    assert path.read_text() == "1\n"


def is_settled(device: dict[str, Any]) -> bool:
    """Return True if the kernel has no news of a device, as ``ip -json address`` shows it."""
    return device["operstate"] == ("UNKNOWN" if device["ifname"] == "lo" else "UP") and not any(
        address.get("tentative") for address in device["addr_info"]
    )


def test_again_changes_nothing(uuid: str) -> None:
    wire(uuid, FIRST, SECOND)
    # The kernel tells of a carrier and of a usable address up to two seconds later.
    until(lambda: all(map(is_settled, networks.ip(uuid, "address"))))
    with subprocess.Popen(
        [
            "nsenter",
            f"--net={namespace.namespace_path(uuid)}",
            "ip",
            "monitor",
            "link",
            "addr",
            "route",
        ],
        stdout=subprocess.PIPE,
    ) as monitor:
        assert monitor.stdout is not None
        # Until the monitor listens, the kernel drops the test's own event, so repeat it.
        os.set_blocking(monitor.stdout.fileno(), False)
        while not monitor.stdout.read():
            networks.run(uuid, "ip", "addr", "add", "127.9.9.9/32", "dev", "lo")
            networks.run(uuid, "ip", "addr", "del", "127.9.9.9/32", "dev", "lo")
        assert wire(uuid, FIRST, SECOND) == ()
        networks.run(uuid, "ip", "addr", "add", "127.9.9.8/32", "dev", "lo")
        seen = b""
        while b"127.9.9.8" not in seen:
            seen += monitor.stdout.read() or b""
        monitor.terminate()
    assert b"eth" not in seen.split(b"127.9.9.8")[0]


def test_settings_of_a_tenant_stay_beside_neutrons(uuid: str) -> None:
    """A tenant with CAP_NET_ADMIN, as keepalived has it, changes the namespace."""
    more = replace(
        FIRST,
        addresses=(*FIRST.addresses, "10.7.0.7/24"),
        routes=(*FIRST.routes, Route("10.90.0.0/16", "10.7.0.1")),
    )
    wire(uuid, more)
    before = {name: value for name, value in link(uuid, "eth0").items() if name != "stats64"}
    for command in (
        "ip address add 10.7.0.250/32 dev eth0",
        "ip address add 10.7.0.251/24 dev eth0",
        "ip address add 10.9.9.9/32 peer 0.0.0.0 dev eth0",
        "ip address add 2001:db8::250/64 dev eth0 nodad",
        "ip route add 192.0.2.0/24 via 10.7.0.1",
        "ip route replace default via 10.7.0.99",
    ):
        assert networks.run(uuid, *command.split()).returncode == 0
    own = {"10.7.0.250/32", "10.7.0.251/24", "10.9.9.9/32", "2001:db8::250/64"}
    routes_of_own = {("192.0.2.0/24", "10.7.0.1", "eth0"), ("default", "10.7.0.99", "eth0")}
    # Neutron adds a port, then takes an address and a route.
    wire(uuid, more, SECOND, keep_own=True)
    assert addresses(uuid, "eth0") == {*more.addresses, *own}
    assert routes_of_own <= routes(uuid)
    wire(uuid, FIRST, SECOND, keep_own=True)
    assert addresses(uuid, "eth0") == {*FIRST.addresses, *own}
    assert routes_of_own <= routes(uuid)
    assert ("10.90.0.0/16", "10.7.0.1", "eth0") not in routes(uuid)
    # Neutron takes the first address of the subnet of the tenant's own address.
    fewer = replace(FIRST, addresses=FIRST.addresses[1:], routes=())
    wire(uuid, fewer, SECOND, keep_own=True)
    assert addresses(uuid, "eth0") == {*fewer.addresses, *own}
    after = {name: value for name, value in link(uuid, "eth0").items() if name != "stats64"}
    assert after == before
    # A server that starts has only what Neutron gave.
    wire(uuid, FIRST, SECOND)
    assert addresses(uuid, "eth0") == set(FIRST.addresses)
    assert not routes_of_own & routes(uuid)


def test_a_server_with_many_routes_gets_a_port(uuid: str) -> None:
    """A server can be a router, whose routes stay while it runs."""
    wire(uuid, FIRST)
    batch(uuid, "route add 11.{}.{}.{}/32 via 10.7.0.9", link_module._MOST_READ)
    own = routes(uuid)
    begin = time.monotonic()
    assert wire(uuid, FIRST, SECOND, keep_own=True) == (SECOND.port_id,)
    assert time.monotonic() - begin < 10
    assert own < routes(uuid)
    assert addresses(uuid, "eth1") == set(SECOND.addresses)


def test_settings_of_a_tenant_beside_the_devices_are_gone_after_a_start(uuid: str) -> None:
    """As after a reboot of a virtual machine; a start of nova-compute changes none of them."""

    def settings() -> list[str]:
        shown = []
        for what in ("address show dev lo", "route show table all", "rule show", "mrule show"):
            for version in ("-4", "-6"):
                done = networks.run(uuid, "ip", version, *what.split())
                assert done.returncode == 0
                shown.append(re.sub(r"valid_lft.*|expires.*", "", done.stdout))
        return shown

    wire(uuid, FIRST)
    before = settings()
    for command in (
        "ip address add 192.0.2.7/32 dev lo",
        "ip address add 2001:db8:7::7/128 dev lo",
        "ip route add 198.51.100.0/24 dev lo",
        "ip route add blackhole 198.51.101.0/24",
        "ip route add unreachable 198.51.102.0/24 metric 7",
        "ip route add prohibit 198.51.102.0/24 metric 8",
        "ip route add 198.51.103.0/24 nexthop via 10.7.0.8 nexthop via 10.7.0.9",
        "ip route add 198.51.104.0/24 via 10.7.0.8 table 100",
        "ip route add throw default table 1000",
        "ip -6 route add blackhole 2001:db8:8::/48",
        "ip -6 route add unreachable 2001:db8:9::/48 metric 7",
        "ip rule add from 10.7.0.5 table 100",
        "ip rule add fwmark 7 blackhole priority 500",
        "ip -6 rule add from 2001:db8:7::7 table 100",
        "ip route add local 8.8.8.0/24 dev lo",
        "ip route add local 8.8.4.0/24 dev lo proto kernel",
        "ip route append local 10.7.0.5 dev lo table local",
        "ip route add local 8.8.5.0/24 dev eth0 table local proto kernel",
        "ip route add 8.8.6.0/24 dev eth0 proto kernel",
        "ip route append 10.7.0.0/24 via 10.7.0.9 proto kernel",
        "ip -6 route add local 2001:db8:12::/48 dev eth0 table local proto kernel",
        "ip -6 route add 2001:db8:13::/48 via 2001:db8::9 proto kernel",
        "ip route add blackhole 198.51.105.0/24 table local",
        "ip route add blackhole 198.51.106.0/24 table local proto kernel",
        "ip -6 route add local 2001:db8:10::/48 dev lo",
        "ip -6 route add blackhole 2001:db8:11::/48 table local proto kernel",
        "ip rule add pref 0 to 10.9.0.0/16 blackhole",
        "ip rule add not from 10.9.0.0/16 pref 0 table local",
        "ip rule del pref 32766",
        "ip rule add pref 32766 from 10.7.0.5 table main",
        "ip rule del pref 32767",
        "ip -6 rule add pref 0 to 2001:db8:9::/48 unreachable",
        "ip -6 rule del pref 32766",
        "ip -6 mrule add pref 7 iif eth0 table 5",
        "ip address del 127.0.0.1/8 dev lo",
        "ip address add 127.0.0.1/16 dev lo",
        "ip -6 address del ::1/128 dev lo",
        "ip link set lo mtu 1000",
    ):
        done = networks.run(uuid, *command.split())
        assert done.returncode == 0, (command, done.stderr)
    own = settings()
    wire(uuid, FIRST, keep_own=True)
    assert settings() == own
    wire(uuid, FIRST)
    assert settings() == before
    for command in (
        "ip link set lo down",
        "ip -6 rule flush",
        "ip rule del pref 0",
        "ip route del 10.7.0.0/24",
        "ip -6 route del local 2001:db8::5 dev eth0",
    ):
        assert networks.run(uuid, *command.split()).returncode == 0
    wire(uuid, FIRST)
    assert settings() == before
    command = "ip route append 10.7.0.0/24 proto kernel nexthop via 10.7.0.8 nexthop via 10.7.0.9"
    assert networks.run(uuid, *command.split()).returncode == 0
    wire(uuid, FIRST)
    assert settings() == before


_MANY = {
    "routes": ("route add blackhole 11.{}.{}.{}/32 table 9", link_module._MOST_SETTINGS),
    "addresses": ("address add 11.{}.{}.{}/32 dev eth0", link_module._MOST_SETTINGS),
    "devices": ("link add own{}-{}-{} type veth", link_module._MOST_DEVICES),
}


def batch(uuid: str, command: str, most: int) -> None:
    """Let a tenant set more than is read of it."""
    numbers = ((number >> 16, number >> 8 & 255, number & 255) for number in range(most + 1))
    subprocess.run(
        ["nsenter", f"--net={namespace.namespace_path(uuid)}", "ip", "-batch", "-"],
        input="\n".join(command.format(*number) for number in numbers),
        text=True,
        check=True,
    )


@pytest.mark.parametrize("owned", [False, True], ids=["shared", "owned"])
@pytest.mark.parametrize(("command", "most"), _MANY.values(), ids=_MANY)
def test_a_namespace_with_too_much_is_replaced_at_a_start(
    uuid: str, owned: bool, command: str, most: int
) -> None:
    """The time and the memory of a start do not grow with what a tenant set."""
    path, user_path = namespace.namespace_path(uuid), namespace.user_namespace_path(uuid)
    if owned:
        ids = [(0, 100_000, 65536)]
        namespace.create_owned_namespace(uuid, ids, ids)
    wire(uuid, FIRST)
    before, inode = routes(uuid), os.stat(path).st_ino
    batch(uuid, command, most)
    begin = time.monotonic()
    assert wire(uuid, FIRST) == (FIRST.port_id,)
    assert time.monotonic() - begin < 10
    assert os.stat(path).st_ino != inode
    assert marks.is_marked(path)
    assert wiring.is_owned_by(path, user_path) == owned
    assert (routes(uuid), addresses(uuid, "eth0")) == (before, set(FIRST.addresses))
    assert {shown["ifname"] for shown in networks.ip(uuid, "link")} == {"lo", "eth0"}
    assert networks.pings(uuid, "127.0.0.1")
    assert wire(uuid, FIRST) == ()


_OWN_DEFAULTS = {
    "own device": [
        "ip link add wg0 up type veth peer name wg1",
        "ip route replace default dev wg0",
        "ip -6 route replace default dev wg0 metric 1024",
    ],
    "loopback": ["ip route replace default dev lo"],
    "blackhole": [
        "ip route delete default",
        "ip route add blackhole default",
        "ip -6 route delete default",
        "ip -6 route add blackhole default metric 1024",
    ],
    "route of the kernel": ["ip route replace default via 10.7.0.99 proto kernel"],
}


@pytest.mark.parametrize("commands", _OWN_DEFAULTS.values(), ids=_OWN_DEFAULTS)
def test_a_default_route_of_a_tenant_gives_way_to_neutrons_at_a_start(
    uuid: str, commands: list[str]
) -> None:
    wire(uuid, FIRST)
    before = routes(uuid)
    for command in commands:
        assert networks.run(uuid, *command.split()).returncode == 0
    # nova-compute starts, then the server.
    wire(uuid, FIRST, keep_own=True)
    assert ("default", "10.7.0.1", "eth0") not in routes(uuid)
    wire(uuid, FIRST)
    assert routes(uuid) == before
    assert {shown["ifname"] for shown in networks.ip(uuid, "link")} == {"lo", "eth0"}


@pytest.mark.parametrize("commands", _OWN_DEFAULTS.values(), ids=_OWN_DEFAULTS)
def test_a_default_route_of_a_tenant_stays_beside_new_devices(
    uuid: str, commands: list[str]
) -> None:
    wire(uuid, FIRST)
    for command in commands:
        assert networks.run(uuid, *command.split()).returncode == 0
    namespace.unwire_nic(uuid, FIRST.host_device)
    own = routes(uuid)
    assert wire(uuid, FIRST, keep_own=True) == (FIRST.port_id,)
    assert own <= routes(uuid)
    assert addresses(uuid, "eth0") == set(FIRST.addresses)


@pytest.mark.parametrize(
    "damage",
    [
        "ip address delete 10.7.0.5/24 dev eth0",
        "ip address flush dev eth0 scope global",
        "ip -6 address flush dev eth0 scope global",
        "ip address add 10.7.0.99/24 dev eth0",
        "ip address add 2001:db8::99/64 dev eth0",
        "ip address add 10.9.9.9/32 peer 0.0.0.0 dev eth0",
        "ip address add 10.7.0.5/32 peer 10.9.9.9 dev eth0",
        "ip address add 2001:db8::98/128 peer 2001:db8:9::97 dev eth0",
        "ip route delete default",
        "ip -6 route delete default",
        "ip route add 10.99.0.0/16 via 10.7.0.9",
        "ip route replace default via 10.7.0.99",
        "ip link set eth0 down",
        "ip link set eth0 mtu 1300",
        "ip link set eth0 address fa:16:3e:99:99:99",
        "ip link set lo down",
        "ip link set eth0 down name eth7",
        "ip link delete eth0",
    ],
)
def test_damage_in_the_namespace_is_repaired(uuid: str, damage: str) -> None:
    wire(uuid, FIRST, SECOND)
    before = (routes(uuid), addresses(uuid, "eth0"))
    assert networks.run(uuid, *damage.split()).returncode == 0
    wire(uuid, FIRST, SECOND)
    assert (routes(uuid), addresses(uuid, "eth0")) == before
    shown = link(uuid, "eth0")
    assert (shown["mtu"], shown["address"]) == (1450, FIRST.mac)
    assert "LOWER_UP" in shown["flags"]  # type: ignore[operator]
    assert networks.pings(uuid, "127.0.0.1")
    (own,) = [
        address["local"]
        for address in networks.ip(uuid, "-6", "address", "show", "eth0")[0]["addr_info"]
        if address["scope"] == "link"
    ]
    assert own == "fe80::f816:3eff:fe00:5"


def test_host_end_is_repaired(uuid: str) -> None:
    wire(uuid, FIRST)
    subprocess.run(["ip", "link", "set", FIRST.host_device, "down", "mtu", "1300"], check=True)
    assert wire(uuid, FIRST) == ()
    shown = networks.host_device(FIRST.host_device)
    assert shown["mtu"] == 1450
    assert "LOWER_UP" in shown["flags"]


@pytest.mark.parametrize("peer", ["host", "other namespace", "same indexes"])
def test_pair_of_the_same_name_that_ends_elsewhere_is_replaced(
    uuid: str, new_instance_uuid: Callable[[], str], peer: str
) -> None:
    other = new_instance_uuid()
    if peer == "host":
        command = f"ip link add {FIRST.host_device} type veth peer name tapother"
        subprocess.run(command.split(), check=True)
    else:
        wire(other, FIRST)
        if peer == "same indexes":
            namespace.wire_nics(uuid, [])
            index = networks.host_device(FIRST.host_device)["ifindex"]
            command = f"ip link add eth0 index 2 type veth peer name x index {index}"
            assert networks.run(uuid, *command.split()).returncode == 0
    # Without keep_own, the driver would delete the other end in the namespace first.
    assert wire(uuid, FIRST, keep_own=peer == "same indexes") == (FIRST.port_id,)
    assert addresses(uuid, "eth0") == set(FIRST.addresses)
    assert "LOWER_UP" in link(uuid, "eth0")["flags"]  # type: ignore[operator]
    runtime.delete_namespace(other)


def test_devices_change_places(uuid: str) -> None:
    wire(uuid, FIRST, SECOND)
    swapped = (replace(SECOND, guest_device="eth0"), replace(FIRST, guest_device="eth1"))
    assert set(wire(uuid, *swapped)) == {FIRST.port_id, SECOND.port_id}
    assert link(uuid, "eth0")["address"] == SECOND.mac
    assert link(uuid, "eth1")["address"] == FIRST.mac
    assert addresses(uuid, "eth1") == set(FIRST.addresses)


def test_device_of_another_kind_is_left_alone(uuid: str) -> None:
    command = f"ip tuntap add {FIRST.host_device} mode tap"
    subprocess.run(command.split(), check=True)
    try:
        with pytest.raises(wiring.WiringFailed) as caught:
            wire(uuid, FIRST)
        with pytest.raises(OSError, match="not a veth"):
            namespace.unwire_nic(uuid, FIRST.host_device)
        assert networks.host_device(FIRST.host_device) is not None
    finally:
        subprocess.run(["ip", "link", "delete", FIRST.host_device], check=True)
    port_id, reason = caught.value.args
    assert port_id == PORT
    assert "not a veth" in reason


def test_what_the_kernel_refuses_names_the_port(uuid: str) -> None:
    with pytest.raises(wiring.WiringFailed) as caught:
        wire(uuid, FIRST, replace(SECOND, mac="ff:ff:ff:ff:ff:ff"))
    assert caught.value.args[0] == SECOND.port_id


def test_unwire_twice(uuid: str) -> None:
    wire(uuid, FIRST)
    namespace.unwire_nic(uuid, FIRST.host_device)
    assert networks.host_device(FIRST.host_device) is None
    namespace.unwire_nic(uuid, FIRST.host_device)


def test_threads_at_once(new_instance_uuid: Callable[[], str]) -> None:
    home = os.stat("/proc/thread-self/ns/net").st_ino
    uuids = [new_instance_uuid() for _ in range(24)]
    nics = [replace(FIRST, host_device=f"tap{number:08x}") for number in range(24)]
    together = threading.Barrier(8, timeout=30)

    def one(uuid: str, nic: Nic) -> int:
        together.wait()
        wire(uuid, nic)
        wire(uuid, nic)
        return os.stat("/proc/thread-self/ns/net").st_ino

    with futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(one, uuids, nics)) == {home}
    for uuid in uuids:
        assert addresses(uuid, "eth0") == set(FIRST.addresses)
    with futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(namespace.unwire_nic, uuids, [nic.host_device for nic in nics]))
        list(pool.map(runtime.delete_namespace, uuids))


def test_threads_wire_one_instance_at_once(uuid: str) -> None:
    with futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: wire(uuid, FIRST), range(8)))
    assert sorted(made) == [()] * 7 + [(PORT,)]


def namespaces_of_threads() -> set[int]:
    found = set()
    for thread in Path("/proc/self/task").glob("*/ns/net"):
        with suppress(FileNotFoundError):
            found.add(thread.stat().st_ino)
    return found


def test_failure_in_the_namespace_leaves_no_thread_there(
    uuid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: str) -> None:
        raise OSError(28, "no space")

    home = os.stat("/proc/thread-self/ns/net").st_ino
    descriptors = os.listdir("/proc/self/fd")
    monkeypatch.setattr(namespaces, "mount_namespace", refuse)
    with pytest.raises(OSError, match="no space"):
        wire(uuid, FIRST)
    assert os.listdir("/proc/self/fd") == descriptors
    # Python reports a thread as ended shortly before the kernel does.
    until(lambda: namespaces_of_threads() == {home})


def test_records(uuid: str) -> None:
    container_id = os.urandom(32).hex()
    record = Path("/run/novadocker/containers") / container_id
    runtime.bind_container(container_id, uuid)
    runtime.bind_container(container_id, uuid)
    assert json.loads(record.read_bytes()) == {
        "version": 1,
        "namespaces": {
            "network": f"/run/netns/nova-{uuid}",
            "user": f"/run/novadocker/users/nova-{uuid}",
        },
        "devices": [],
    }
    assert record.stat().st_mode & 0o777 == 0o644
    assert record.parent.stat().st_mode & 0o777 == 0o755
    runtime.release_container(container_id)
    runtime.release_container(container_id)
    assert not record.exists()
    files = record.with_name(f"{container_id}.files")
    runtime.bind_container(
        container_id,
        uuid,
        etc_files={"hosts": b"a", "machine-id": b"b"},
        login={
            "user": "root",
            "keys": b"k",
            "password_hash": "$6$salt$hash",
            "password_day": 20000,
        },
    )
    assert {
        str(path.relative_to(files)): path.stat().st_mode & 0o777 for path in files.rglob("*")
    } == {
        "etc": 0o755,
        "etc/hosts": 0o644,
        "etc/machine-id": 0o444,
        "login": 0o600,
        ".ssh": 0o700,
        ".ssh/authorized_keys": 0o600,
    }
    assert files.stat().st_mode & 0o777 == 0o700
    assert (files / "login").read_text() == "root $6$salt$hash 20000\n"
    runtime.delete_namespace(uuid)
    assert not record.exists()
    assert not files.exists()


@pytest.fixture
def helper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start the real privileged process with nova-compute's command, but without sudo."""
    package = str(Path(novadocker.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", package, prepend=os.pathsep)
    conf.CONF.set_override("helper_command", "privsep-helper", group="novadocker_network")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    privsep.network_pctxt.set_client_mode(True)
    yield
    privsep.network_pctxt.stop()
    privsep.network_pctxt.set_client_mode(False)
    conf.CONF.clear_override("helper_command", group="novadocker_network")


def privileged_processes() -> list[str]:
    """Return the ids of this network namespace's helpers, without other sessions' helpers."""
    home = os.stat("/proc/self/ns/net")
    return [
        command.parent.name
        for command in Path("/proc").glob("[0-9]*/cmdline")
        if b"novadocker.privsep.network_pctxt" in command.read_bytes()
        and os.path.samestat(home, os.stat(command.parent / "ns" / "net"))
    ]


def test_through_the_privileged_process(
    helper: None, uuid: str, new_instance_uuid: Callable[[], str]
) -> None:
    old = os.umask(0o077)
    try:
        assert wire(uuid, FIRST, SECOND) == (FIRST.port_id, SECOND.port_id)
    finally:
        os.umask(old)
    assert addresses(uuid, "eth0") == set(FIRST.addresses)
    (daemon,) = privileged_processes()
    status = Path(f"/proc/{daemon}/status").read_text()
    # CAP_DAC_OVERRIDE, CAP_SETGID, CAP_SETUID, CAP_NET_ADMIN, CAP_SYS_PTRACE and CAP_SYS_ADMIN.
    capabilities = sum(1 << number for number in (1, 6, 7, 12, 19, 21))
    assert re.findall(r"CapEff:\t(\w+)", status) == [f"{capabilities:016x}"]
    owned = new_instance_uuid()
    namespace.create_owned_namespace(owned, [(0, 100_000, 65536)], [(0, 100_000, 65536)])
    assert namespaces.is_namespace(namespace.namespace_path(owned))
    users = Path(namespace.USER_NAMESPACES)
    assert [folder.stat().st_mode & 0o777 for folder in (users.parent, users)] == [0o755, 0o755]
    batch(owned, *_MANY["devices"])
    inode = os.stat(namespace.namespace_path(owned)).st_ino
    namespace.wire_nics(owned, [])
    assert os.stat(namespace.namespace_path(owned)).st_ino != inode
    paths = namespace.namespace_path(owned), namespace.user_namespace_path(owned)
    assert wiring.is_owned_by(*paths)
    runtime.delete_namespace(owned)
    with pytest.raises(wiring.WiringFailed) as caught:
        wire(uuid, replace(FIRST, mac="ff:ff:ff:ff:ff:ff"))
    assert caught.value.args[0] == PORT
    with pytest.raises(ValueError, match="does not match"):
        namespace.unwire_nic(uuid, "lo")
    container_id = os.urandom(32).hex()
    runtime.bind_container(container_id, uuid)
    record = runtime.FOLDER / container_id
    assert record.stat().st_mode & 0o777 == 0o644
    assert runtime.FOLDER.parent.stat().st_mode & 0o777 == 0o755

    before = len(os.listdir(f"/proc/{daemon}/fd"))
    others = [new_instance_uuid() for _ in range(16)]
    with futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda other: namespace.wire_nics(other, []), others))
        list(pool.map(runtime.delete_namespace, others))
    assert len(os.listdir(f"/proc/{daemon}/fd")) == before
    namespace.unwire_nic(uuid, FIRST.host_device)
    namespace.unwire_nic(uuid, SECOND.host_device)
    runtime.delete_namespace(uuid)
    assert not record.exists()
