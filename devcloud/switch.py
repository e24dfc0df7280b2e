# SPDX-License-Identifier: Apache-2.0
"""One host's Open vSwitch: its database, settings and bridges."""

import socket
import subprocess

from devcloud import ovn
from devcloud.network import CABLES, cable, ip
from devcloud.settings import FLOATING_GATEWAY, Host, Settings
from devcloud.steps import StepFailed, run_command

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"

TUNNEL_BRIDGE = "br-phy"

BRIDGES = ("br-ex", "br-vlan", TUNNEL_BRIDGE)
"""The provider networks' bridges, and the bridge with the tunnels' address, which the user-space
datapath requires. The Neutron agent creates br-int and br-tun, ovn-controller only br-int.
"""

TUNNEL_PREFIX = 24


def vsctl(settings: Settings, host: Host, *words: str) -> str:
    """Run ovs-vsctl on a host's switch and return its output.

    :raises StepFailed: the command failed.
    """
    done = subprocess.run(
        ["ovs-vsctl", f"--db=unix:{settings.switch_socket(host)}", "--timeout=20", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise StepFailed(
            f"The command ovs-vsctl {' '.join(words)} failed: {done.stderr.strip()}",
            f"python3 -m devcloud ctl restart ovsdb-{host.name} ovs-{host.name}",
            settings.log / f"ovs-{host.name}.log",
        )
    return done.stdout


def listens(settings: Settings, host: Host) -> bool:
    """Return True if a host's switch database accepts connections.

    The socket's file exists a moment before the database listens.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(settings.switch_socket(host)))
        except OSError:
            return False
    return True


def make_database(settings: Settings, host: Host) -> None:
    """Create an empty switch database in place of an old one.

    An earlier run's ports name devices that are gone; the agents create their ports again.
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
    """Set the values that ovs-vswitchd reads only when it starts, and those of ovn-controller."""
    chassis = ovn.chassis(host) if settings.network == "ovn" else {}
    vsctl(
        settings,
        host,
        *("--no-wait", "init", "--", "set", "open_vswitch", "."),
        f"external_ids:system-id={host.name}",
        f"external_ids:hostname={host.name}",
        *(f'external_ids:{name}="{value}"' for name, value in chassis.items()),
    )


def make_bridges(settings: Settings, host: Host) -> None:
    """Create the bridges and connect them to the other hosts' bridges. Idempotent.

    br-ex has the floating network's gateway address, br-phy the host's tunnel address.
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
