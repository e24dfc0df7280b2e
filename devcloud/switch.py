# SPDX-License-Identifier: Apache-2.0
"""One host's Open vSwitch: database, settings, bridges."""

import subprocess

from devcloud.network import CABLES, cable, ip
from devcloud.settings import FLOATING_GATEWAY, Host, Settings
from devcloud.steps import StepFailed, run_command

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"

TUNNEL_BRIDGE = "br-phy"

BRIDGES = ("br-ex", "br-vlan", TUNNEL_BRIDGE)
"""Bridges of the provider networks, and the one that has the tunnels' address, as the user-space
datapath wants it; br-int and br-tun are made by the Neutron agent."""

TUNNEL_PREFIX = 24


def vsctl(settings: Settings, host: Host, *words: str) -> str:
    """Run ovs-vsctl on a host's switch and return what it prints.

    :raises StepFailed: it failed.
    """
    done = subprocess.run(
        ["ovs-vsctl", f"--db=unix:{settings.switch_socket(host)}", "--timeout=20", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise StepFailed(
            f"ovs-vsctl {' '.join(words)}: {done.stderr.strip()}",
            f"python3 -m devcloud ctl restart ovsdb-{host.name} ovs-{host.name}",
            settings.log / f"ovs-{host.name}.log",
        )
    return done.stdout


def make_database(settings: Settings, host: Host) -> None:
    """Make an empty switch database in place of an old one.

    Ports of an earlier run point at devices that are gone; the agents make theirs anew.
    """
    folder = settings.host_data(host) / "ovs"
    folder.mkdir(parents=True, exist_ok=True)
    settings.switch_socket(host).parent.mkdir(parents=True, exist_ok=True)
    (folder / "conf.db").unlink(missing_ok=True)
    run_command(
        ["ovsdb-tool", "create", folder / "conf.db", SCHEMA],
        log=settings.log / f"ovsdb-create-{host.name}.log",
        advice="apt-get install --reinstall openvswitch-switch",
    )


def prepare(settings: Settings, host: Host) -> None:
    """Set what ovs-vswitchd reads once, at its start."""
    vsctl(
        settings,
        host,
        *("--no-wait", "init", "--", "set", "open_vswitch", "."),
        f"external_ids:system-id={host.name}",
        f"external_ids:hostname={host.name}",
    )


def make_bridges(settings: Settings, host: Host) -> None:
    """Make the bridges and join them to the other hosts'.

    br-ex carries the floating network's gateway, br-phy the host's end of the tunnels.
    """
    for bridge in BRIDGES:
        vsctl(
            settings,
            host,
            *("--may-exist", "add-br", bridge),
            *("--", "set", "bridge", bridge, "datapath_type=netdev"),
        )
    for kind, bridge in (("phy", TUNNEL_BRIDGE), ("vlan", "br-vlan")):
        others = [other for other in settings.hosts if other.gateway is not None]
        ends = [CABLES[kind]] if host in others else [cable(kind, other) for other in others]
        for end in ends:
            vsctl(settings, host, "--may-exist", "add-port", bridge, end)
    tunnel = f"{host.tunnel_address}/{TUNNEL_PREFIX}"
    ip("-n", host.namespace, "address", "replace", tunnel, "dev", TUNNEL_BRIDGE)
    ip("-n", host.namespace, "link", "set", TUNNEL_BRIDGE, "up")
    if host.network_node:
        ip("-n", host.namespace, "address", "replace", f"{FLOATING_GATEWAY}/24", "dev", "br-ex")
        ip("-n", host.namespace, "link", "set", "br-ex", "up")
