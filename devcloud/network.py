# SPDX-License-Identifier: Apache-2.0
"""The cloud's network namespace and its link to the machine. Standard library only."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from devcloud.settings import (
    API_ADDRESS,
    FLOATING_NETWORK,
    GATEWAY_ADDRESS,
    LINK_PREFIX,
    NAMESPACE,
    Host,
)
from devcloud.steps import StepFailed

NAMESPACES = Path("/run/netns")
MACHINE_END = "devcloud"
CLOUD_END = "uplink"

FLAT = "flat"
FLAT_BRIDGE = "br-flat"
"""The first host's bridge to the physical network ``physflat``, with the other hosts' links."""

CABLES = {"mgmt": CLOUD_END, "phy": "phy", "vlan": "vlan", FLAT: FLAT}
"""A host's links to the first host: the name there, which the host's number follows, and here."""


def ip(*words: str, check: bool = True) -> str:
    """Run iproute2 and return its output.

    :raises StepFailed: the command failed and ``check`` is set.
    """
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise StepFailed(
            f"The command ip {' '.join(words)} failed: {done.stderr.strip()}",
            "look for a conflicting address or route: ip address, ip route",
        )
    return done.stdout


def inside(namespace: str, command: Sequence[str | Path]) -> list[str | Path]:
    """Return a command that runs in a network namespace.

    ``ip netns exec`` is not used, because it gives each command its own mount namespace and /sys.
    """
    return ["nsenter", f"--net={NAMESPACES / namespace}", *command]


def ensure_namespace(name: str) -> None:
    """Create a network namespace with IP forwarding. Idempotent."""
    # After a reboot with a persistent /run, the file of a namespace exists but is not mounted.
    if (NAMESPACES / name).exists() and not is_namespace(name):
        (NAMESPACES / name).unlink()
    if not (NAMESPACES / name).exists():
        ip("netns", "add", name)
    ip("-n", name, "link", "set", "lo", "up")
    subprocess.run(
        inside(name, ["sysctl", "-qw", "net.ipv4.ip_forward=1"]), check=True, capture_output=True
    )


def is_namespace(name: str) -> bool:
    """Return True if the name is a mounted namespace and not a left-over file."""
    entered = subprocess.run(inside(name, ["true"]), check=False, capture_output=True)
    return entered.returncode == 0


def ensure_link() -> None:
    """Connect the namespace to the machine and route the floating addresses over the link."""
    if not ip("-o", "link", "show", MACHINE_END, check=False):
        ip("link", "add", MACHINE_END, "type", "veth", "peer", CLOUD_END, "netns", NAMESPACE)
    ip("address", "replace", f"{GATEWAY_ADDRESS}/{LINK_PREFIX}", "dev", MACHINE_END)
    ip("link", "set", MACHINE_END, "up")
    ip("-n", NAMESPACE, "address", "replace", f"{API_ADDRESS}/{LINK_PREFIX}", "dev", CLOUD_END)
    ip("-n", NAMESPACE, "link", "set", CLOUD_END, "up")
    ip("-n", NAMESPACE, "route", "replace", "default", "via", GATEWAY_ADDRESS)
    ip("route", "replace", FLOATING_NETWORK, "via", API_ADDRESS)


def cable(kind: str, host: Host) -> str:
    """Return the name of the first host's end of a link to another host."""
    return f"{kind}{host.number}"


def flat_interface(host: Host) -> str:
    """Return the name of a host's device to the physical network ``physflat``."""
    return FLAT_BRIDGE if host.gateway is None else CABLES[FLAT]


def ensure_flat_bridge() -> None:
    """Create the bridge to the physical network without an Open vSwitch bridge. Idempotent."""
    if not ip("-n", NAMESPACE, "-o", "link", "show", FLAT_BRIDGE, check=False):
        ip("-n", NAMESPACE, "link", "add", FLAT_BRIDGE, "type", "bridge")
    ip("-n", NAMESPACE, "link", "set", FLAT_BRIDGE, "up")


def ensure_cables(host: Host) -> None:
    """Connect a host to the first host: management, tunnels and the physical networks."""
    for kind, own_end in CABLES.items():
        far_end = cable(kind, host)
        if not ip("-n", NAMESPACE, "-o", "link", "show", far_end, check=False):
            ip(
                *("-n", NAMESPACE, "link", "add", far_end, "type", "veth"),
                *("peer", own_end, "netns", host.namespace),
            )
        ip("-n", NAMESPACE, "link", "set", far_end, "up")
        ip("-n", host.namespace, "link", "set", own_end, "up")
    ip("-n", NAMESPACE, "link", "set", cable(FLAT, host), "master", FLAT_BRIDGE)
    far, near = f"{host.gateway}/{LINK_PREFIX}", f"{host.address}/{LINK_PREFIX}"
    ip("-n", NAMESPACE, "address", "replace", far, "dev", cable("mgmt", host))
    ip("-n", host.namespace, "address", "replace", near, "dev", CLOUD_END)
    ip("-n", host.namespace, "route", "replace", "default", "via", str(host.gateway))


def remove_namespace(name: str) -> None:
    """Delete a network namespace with its veth pairs. Does nothing if it does not exist."""
    if (NAMESPACES / name).exists():
        ip("netns", "delete", name)


def list_namespaces() -> list[str]:
    """Return the names of the machine's network namespaces."""
    return sorted(path.name for path in NAMESPACES.iterdir()) if NAMESPACES.exists() else []


def processes_in(name: str) -> list[int]:
    """Return the ids of the processes in a network namespace."""
    if not (NAMESPACES / name).exists():
        return []
    return [int(word) for word in ip("netns", "pids", name, check=False).split()]
