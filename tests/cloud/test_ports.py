# SPDX-License-Identifier: Apache-2.0
"""Neutron's features for servers: hotplug of ports, filters, limits, floating addresses."""

import json
import re
import select
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openstack.connection import Connection

from devcloud.demo import fixed_address, ssh
from devcloud.network import inside
from devcloud.settings import Settings
from devcloud.switch import vsctl
from tests.cloud import frames
from tests.cloud.guests import Guest, until
from tests.cloud.servers import Servers, address, fault, pings
from tests.cloud.test_watch import value


@pytest.fixture(scope="module")
def made(demo: Connection) -> Iterator[Servers]:
    """Yield the module's servers and delete them at the end."""
    found = Servers(demo)
    yield found
    found.delete_all()


@pytest.fixture(scope="module")
def guest(made: Servers, cloud: Settings, tenant_network: str) -> Guest:
    """Return a login server on the network ``private``."""
    server = made.create("ports", image="debian", flavor="d1.small", key_name="demo")
    assert server.status == "ACTIVE", fault(server)
    found = Guest(cloud, server, tenant_network)
    found.wait()
    return found


@pytest.fixture
def security_group(demo: Connection) -> Iterator[Any]:
    """Yield a security group without rules."""
    group = demo.network.create_security_group(name=f"test-{uuid.uuid4().hex[:8]}")
    for rule in group.security_group_rules:
        demo.network.delete_security_group_rule(rule["id"])
    yield group
    until(lambda: not list(demo.network.ports(security_groups=[group.id])))
    demo.network.delete_security_group(group)


def own_port(demo: Connection, guest: Guest) -> Any:
    """Return the login server's first port."""
    wanted = f"ip_address={fixed_address(guest.server)}"
    (found,) = demo.network.ports(device_id=guest.server.id, fixed_ips=wanted)
    return found


def devices(guest: Guest) -> dict[str, tuple[str, list[str]]]:
    """Return the server's devices by MAC address: name and IPv4 addresses."""
    links = json.loads(guest.ask("ip -json address"))
    return {
        link["address"]: (
            link["ifname"],
            [entry["local"] for entry in link["addr_info"] if entry["family"] == "inet"],
        )
        for link in links
        if link["link_type"] == "ether"
    }


def named(guest: Guest, port: Any) -> str:
    """Return the name of a port's device, which must have the port's addresses."""
    name, addresses = devices(guest)[port.mac_address]
    assert addresses == [ip["ip_address"] for ip in port.fixed_ips if "." in ip["ip_address"]]
    return name


def attach(demo: Connection, guest: Guest, port: Any) -> None:
    demo.compute.create_server_interface(guest.server, port_id=port.id)


def detach(demo: Connection, guest: Guest, port: Any) -> None:
    demo.compute.delete_server_interface(port.id, server=guest.server)
    until(lambda: not demo.network.get_port(port).device_id)


def test_ports_of_a_living_server(
    guest: Guest,
    cloud: Settings,
    demo: Connection,
    admin: Connection,
    made: Servers,
    new_port: Callable[..., Any],
    tenant_network: str,
) -> None:
    compute = demo.compute
    own = own_port(demo, guest)
    one, two, three = (new_port(name) for name in ("private", "private-vlan", "private-vlan"))
    attach(demo, guest, one)
    attach(demo, guest, two)
    assert (named(guest, one), named(guest, two)) == ("eth1", "eth2")
    assert len(json.loads(guest.ask("ip -json route show default"))) == 1
    until(lambda: demo.network.get_port(two).status == "ACTIVE")
    assert pings(cloud.tenant_namespace(two.network_id), two.fixed_ips[0]["ip_address"])

    detach(demo, guest, one)
    assert list(devices(guest)) == [own.mac_address, two.mac_address]
    compute.reboot_server(guest.server, "HARD")
    made.wait(guest.server, lambda s: s.status == "ACTIVE")
    guest.wait()
    assert named(guest, two) == "eth2"

    guest.ask("echo '# mine' | sudo tee -a /etc/resolv.conf")
    compute.pause_server(guest.server)
    made.wait(guest.server, lambda s: s.status == "PAUSED")
    attach(demo, guest, three)
    compute.unpause_server(guest.server)
    made.wait(guest.server, lambda s: s.status == "ACTIVE")
    assert named(guest, three) == "eth1"
    assert guest.ask("tail -n 1 /etc/resolv.conf") == "# mine\n"
    assert three.fixed_ips[0]["ip_address"] in guest.ask("cat /etc/hosts")

    compute.stop_server(guest.server)
    made.wait(guest.server, lambda s: s.status == "SHUTOFF")
    detach(demo, guest, three)
    attach(demo, guest, one)
    (home,) = [ip["ip_address"] for ip in one.fixed_ips if "." in ip["ip_address"]]
    assert not pings(tenant_network, home)
    compute.start_server(guest.server)
    made.wait(guest.server, lambda s: s.status == "ACTIVE")
    guest.wait()
    assert (named(guest, one), named(guest, two)) == ("eth1", "eth2")

    # Delete a port in Neutron while the server uses it.
    admin.network.delete_port(one)
    until(lambda: one.mac_address not in devices(guest))
    detach(demo, guest, two)
    assert list(devices(guest)) == [own.mac_address]


def test_network_and_fixed_address_of_a_living_server(guest: Guest, demo: Connection) -> None:
    network = demo.network.find_network("private-vlan").id
    added = demo.compute.create_server_interface(guest.server, net_id=network, tag="storage")
    port = demo.network.get_port(added.port_id)
    assert named(guest, port) == "eth1"
    metadata = "curl -s http://169.254.169.254/openstack/latest/meta_data.json"
    shown = until(lambda: json.loads(guest.ask(metadata)).get("devices"))
    assert [(d["mac"], d["tags"]) for d in shown] == [(port.mac_address, ["storage"])]
    url = f"/servers/{guest.server.id}/action"

    def act(**action: Any) -> None:
        oldest = {"OpenStack-API-Version": "compute 2.1"}
        demo.compute.post(url, json=action, headers=oldest).raise_for_status()

    act(addFixedIp={"networkId": network})
    changed = until(
        lambda: (now := demo.network.get_port(port)) and len(now.fixed_ips) == 2 and now
    )
    until(lambda: len(devices(guest)[port.mac_address][1]) == 2)
    first = port.fixed_ips[0]["ip_address"]
    (second,) = {ip["ip_address"] for ip in changed.fixed_ips} - {first}
    assert set(devices(guest)[port.mac_address][1]) == {first, second}
    act(removeFixedIp={"address": second})
    until(lambda: devices(guest)[port.mac_address][1] == [first])
    demo.compute.delete_server_interface(port.id, server=guest.server)
    until(lambda: demo.network.find_port(port.id) is None)


def test_eight_ports_at_boot(
    made: Servers,
    demo: Connection,
    new_port: Callable[..., Any],
    image: Callable[..., str],
    busybox: Path,
) -> None:
    subnets = {s.name: s.id for s in demo.network.subnets()}
    twice = [{"subnet_id": subnets["private-vlan"]}] * 2
    ports = [
        new_port("private-vlan"),
        new_port("private"),
        new_port("private-vlan", fixed_ips=twice),
        *(new_port(name) for name in ("private-vlan", "private") * 2),
        new_port("private", fixed_ips=[{"subnet_id": subnets["private"]}]),
    ]
    script = "ip -o link; ip -o -4 address; ip -4 route; ip -6 route; echo complete; sleep 1d"
    name = image(busybox, os_command_line=f"sh -c '{script}'")
    server = made.create("eight", image=name, networks=[{"port": port.id} for port in ports])
    assert server.status == "ACTIVE", fault(server)

    def read() -> str:
        text = str(demo.compute.get_server_console_output(server)["output"])
        return text if "complete" in text else ""

    lines = [line.split() for line in until(read).splitlines()]
    macs = {
        words[1].partition("@")[0]: words[words.index("link/ether") + 1]
        for words in lines
        if "link/ether" in words
    }
    assert macs == {f"eth{n}": port.mac_address for n, port in enumerate(ports)}
    for number, port in enumerate(ports):
        wanted = [ip["ip_address"] for ip in port.fixed_ips if "." in ip["ip_address"]]
        found = [w[3].partition("/")[0] for w in lines if w[1:3] == [f"eth{number}", "inet"]]
        assert sorted(found) == sorted(wanted)
    gateways = [words[2] for words in lines if words[:2] == ["default", "via"]]
    assert sorted("." in gateway for gateway in gateways) == [False, True]
    made.delete(server)


def test_an_address_of_a_deleted_server_works_at_once_for_the_next(
    made: Servers, demo: Connection, tenant_network: str
) -> None:
    network = demo.network.find_network("private").id
    wanted: dict[str, str] = {}
    for _ in range(2):
        server = made.create("again", networks=[{"uuid": network, **wanted}])
        assert server.status == "ACTIVE", fault(server)
        wanted = {"fixed_ip": address(server)}
        assert pings(tenant_network, address(server))
        made.delete(server)


@pytest.fixture
def fresh_network(demo: Connection) -> Iterator[str]:
    """Yield the id of a network with a subnet that Neutron's DHCP agent serves."""
    made = demo.network.create_network(name=f"test-{uuid.uuid4().hex[:8]}")
    demo.network.create_subnet(network_id=made.id, ip_version=4, cidr="10.8.0.0/24")
    yield made.id
    demo.network.delete_network(made)


def test_a_dhcp_client_inside_gets_the_address_that_is_there(
    servers: Servers,
    demo: Connection,
    image: Callable[..., str],
    busybox: Path,
    fresh_network: str,
) -> None:
    script = (
        r'printf "#!/bin/sh\necho lease \$1 \$ip\n" >/lease; chmod +x /lease; '
        "udhcpc -f -q -A 2 -i eth0 -s /lease; "
        "wget -q -O - http://169.254.169.254/openstack/latest/meta_data.json; "
        "echo complete; sleep 1d"
    )
    asking = image(busybox, os_command_line=f"sh -c '{script}'")
    server = servers.create("dhcp", image=asking, networks=[{"uuid": fresh_network}])
    assert server.status == "ACTIVE", fault(server)

    def read() -> str:
        text = str(demo.compute.get_server_console_output(server)["output"])
        return text if "complete" in text else ""

    output = until(read)
    assert f"lease bound {address(server)}" in output
    # The network has no router, so the route to the service leads to the DHCP agent.
    assert f'"uuid": "{server.id}"' in output
    servers.delete(server)


def test_floating_address_and_metadata(guest: Guest, demo: Connection, cloud: Settings) -> None:
    public = demo.network.find_network("public").id
    floating = demo.network.create_ip(floating_network_id=public, port_id=own_port(demo, guest).id)
    try:
        outside = floating.floating_ip_address
        command = [
            *ssh(cloud, outside),
            "curl -s http://169.254.169.254/latest/meta-data/local-ipv4",
        ]
        until(lambda: subprocess.run([*ssh(cloud, outside), "true"]).returncode == 0)
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == address(guest.server)
        url = "http://169.254.169.254/latest/meta-data/public-ipv4"
        until(lambda: guest.ask(f"curl -s {url}") == outside)
    finally:
        demo.network.delete_ip(floating)


@pytest.mark.parametrize(
    ("version", "family", "protocol"), [(4, "IPv4", "icmp"), (6, "IPv6", "ipv6-icmp")]
)
def test_security_groups_filter_both_directions(
    guest: Guest,
    made: Servers,
    demo: Connection,
    security_group: Any,
    new_port: Callable[..., Any],
    tenant_network: str,
    version: int,
    family: str,
    protocol: str,
) -> None:
    network = demo.network
    group = security_group.id
    port = new_port("private", security_groups=[group])
    peer = made.create("filtered", networks=[{"port": port.id}])
    assert peer.status == "ACTIVE", fault(peer)
    home, login = address(peer, version), address(guest.server, version)
    assert not pings(tenant_network, home)

    def rule(direction: str, remote: str) -> Any:
        return network.create_security_group_rule(
            security_group_id=group,
            direction=direction,
            ether_type=family,
            protocol=protocol,
            remote_ip_prefix=remote,
        )

    # The rule allows the login server only.
    opened = rule("ingress", login)
    until(lambda: guest.run(f"ping -c 1 -w 1 {home}").returncode == 0)
    assert not pings(tenant_network, home)
    network.delete_security_group_rule(opened)
    until(lambda: guest.run(f"ping -c 1 -w 1 {home}").returncode != 0)

    # The peer's processes are in this network namespace.
    def peer_pings() -> bool:
        command = inside(f"nova-{peer.id}", ["ping", "-c", "1", "-w", "1", login])
        return subprocess.run(command, capture_output=True).returncode == 0

    assert not peer_pings()
    rule("egress", login)
    until(peer_pings)
    made.delete(peer)


def arrives(guest: Guest, listener: frames.Listener, frame: bytes) -> bool:
    """Send a frame from the login server; return True if the listener has received a text."""
    guest.ask("sudo perl -", frames.sender(frame))
    return bool(select.select([listener.process.stdout], [], [], 1.0)[0])


def test_no_one_inside_changes_or_forges_an_address(
    guest: Guest, demo: Connection, admin: Connection, tenant_network: str
) -> None:
    for command in (
        "link set eth0 address 02:00:00:00:00:01",
        "address add 10.0.0.250/24 dev eth0",
        "route add 192.0.2.0/24 dev eth0",
    ):
        done = guest.run(f"sudo ip {command}")
        assert done.returncode != 0
        assert "not permitted" in done.stderr
    port = own_port(demo, guest)
    (home,) = [ip["ip_address"] for ip in port.fixed_ips if "." in ip["ip_address"]]
    with frames.listening(tenant_network) as listener:
        for mac, source, text in (
            ("02:00:00:00:00:01", home, "forged MAC"),
            (port.mac_address, "10.0.0.250", "forged address"),
            (port.mac_address, home, "genuine"),
        ):
            frame = frames.datagram(mac, source, listener.mac, listener.address, text)
            guest.ask("sudo perl -", frames.sender(frame))
        assert listener.read_until("genuine") == ["genuine"]
        # Neutron can allow the address.
        admin.network.update_port(port, allowed_address_pairs=[{"ip_address": "10.0.0.250"}])
        frame = frames.datagram(
            port.mac_address, "10.0.0.250", listener.mac, listener.address, "allowed"
        )
        until(lambda: arrives(guest, listener, frame))
        admin.network.update_port(port, allowed_address_pairs=[])
        assert listener.read_until("allowed") == ["allowed"]


def test_a_port_without_port_security_is_not_filtered(
    guest: Guest, demo: Connection, tenant_network: str
) -> None:
    port = own_port(demo, guest)
    with frames.listening(tenant_network) as listener:

        def forged(text: str) -> bytes:
            mac, source = "02:00:00:00:00:01", "10.0.0.250"
            return frames.datagram(mac, source, listener.mac, listener.address, text)

        assert not arrives(guest, listener, forged("filtered"))
        demo.network.update_port(port, security_groups=[], is_port_security_enabled=False)
        try:
            until(lambda: arrives(guest, listener, forged("not filtered")))
        finally:
            demo.network.update_port(
                port, is_port_security_enabled=True, security_groups=port.security_group_ids
            )
        assert listener.read_until("not filtered") == ["not filtered"]


def test_two_ports_with_one_mac(
    made: Servers, cloud: Settings, new_port: Callable[..., Any]
) -> None:
    one = new_port("private")
    two = new_port("private-vlan", mac_address=one.mac_address)
    server = made.create("twins", networks=[{"port": one.id}, {"port": two.id}])
    assert server.status == "ACTIVE", fault(server)
    for port in (one, two):
        (home,) = [ip["ip_address"] for ip in port.fixed_ips if "." in ip["ip_address"]]
        assert pings(cloud.tenant_namespace(port.network_id), home)
    made.delete(server)


def test_bandwidth_limits_follow_neutron(
    guest: Guest, demo: Connection, admin: Connection, cloud: Settings
) -> None:
    """Check the rates that Neutron configures and the exporter shows, not their enforcement."""
    host = cloud.hosts[0]
    port = own_port(demo, guest)
    device = f"tap{port.id}"[:14]
    policy = admin.network.create_qos_policy(name="test-limits", is_shared=True)

    def output(*command: str) -> str:
        found = inside(host.namespace, command)
        return subprocess.run(found, capture_output=True, text=True, check=True).stdout

    def by_agent() -> list[int]:
        shown = output("tc", "class", "show", "dev", device)
        to_server = [int(rate) * 1000 for rate in re.findall(r"htb 1:1 .* ceil (\d+)Mbit", shown)]
        policed = vsctl(cloud, host, "get", "interface", device, "ingress_policing_rate")
        return sorted([*to_server, *filter(None, [int(policed)])])

    def by_meters() -> list[int]:
        switch = f"unix:{cloud.switch_socket(host).parent}/br-int.mgmt"
        shown = output("ovs-ofctl", "--protocols=OpenFlow13", "dump-meters", switch)
        return sorted(map(int, re.findall(r"rate=(\d+)", shown)))

    rates = by_meters if cloud.network == "ovn" else by_agent
    before = rates()

    def limited(*expected: int) -> None:
        """Wait until the switch has these rates in kbit/s, in both directions together."""
        until(lambda: rates() == sorted([*before, *expected]))

    def exported(received: int, sent: int) -> None:
        """Wait until the exporter shows these limits of the server in kbit/s; 0 is none."""
        for direction, expected in (("receive", received), ("transmit", sent)):
            metric = f"novadocker_server_network_{direction}_limit_bytes_per_second"
            query = f'{metric}{{uuid="{guest.server.id}",device="eth0"}} or vector(0)'
            until(lambda query=query, expected=expected: value(query) == expected * 1000 / 8)

    def rule(direction: str) -> Any:
        return admin.network.create_qos_bandwidth_limit_rule(
            policy, max_kbps=20_000, max_burst_kbps=16_000, direction=direction
        )

    try:
        to_server = rule("ingress")
        rule("egress")
        demo.network.update_port(port, qos_policy_id=policy.id)
        limited(20_000, 20_000)
        exported(20_000, 20_000)
        admin.network.update_qos_bandwidth_limit_rule(to_server, policy, max_kbps=10_000)
        limited(10_000, 20_000)
        demo.network.update_port(port, qos_policy_id=None)
        limited()
        exported(0, 0)
        network = demo.network.find_network("private")
        demo.network.update_network(network, qos_policy_id=policy.id)
        try:
            # The switch limits other ports of the network, too.
            exported(10_000, 20_000)
        finally:
            demo.network.update_network(network, qos_policy_id=None)
        limited()
    finally:
        demo.network.update_port(port, qos_policy_id=None)
        admin.network.delete_qos_policy(policy)
