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
)
from devcloud.steps import StepFailed

NAMESPACES = Path("/run/netns")
MACHINE_END = "devcloud"
CLOUD_END = "uplink"


def ip(*words: str, check: bool = True) -> str:
    """Run iproute2 and return what it prints.

    :raises StepFailed: it failed and ``check`` is set.
    """
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise StepFailed(
            f"ip {' '.join(words)}: {done.stderr.strip()}",
            "look for another network in the way: ip address, ip route",
        )
    return done.stdout


def inside(namespace: str, command: Sequence[str | Path]) -> list[str | Path]:
    """Return a command that runs in a namespace.

    Not ``ip netns exec``, which gives each command a mount namespace and /sys of its own.
    """
    return ["nsenter", f"--net={NAMESPACES / namespace}", *command]


def ensure_namespace(name: str) -> None:
    """Make a network namespace that forwards, if there is none."""
    # a name whose mount is gone (a reboot on a persistent /run) cannot be entered
    if (NAMESPACES / name).exists() and not is_namespace(name):
        (NAMESPACES / name).unlink()
    if not (NAMESPACES / name).exists():
        ip("netns", "add", name)
    ip("-n", name, "link", "set", "lo", "up")
    subprocess.run(
        inside(name, ["sysctl", "-qw", "net.ipv4.ip_forward=1"]), check=True, capture_output=True
    )


def is_namespace(name: str) -> bool:
    """Return whether the name is a mounted namespace and not a left-over file."""
    entered = subprocess.run(inside(name, ["true"]), check=False, capture_output=True)
    return entered.returncode == 0


def ensure_link() -> None:
    """Join the namespace to the machine and route the floating addresses over it."""
    if not ip("-o", "link", "show", MACHINE_END, check=False):
        ip("link", "add", MACHINE_END, "type", "veth", "peer", CLOUD_END, "netns", NAMESPACE)
    ip("address", "replace", f"{GATEWAY_ADDRESS}/{LINK_PREFIX}", "dev", MACHINE_END)
    ip("link", "set", MACHINE_END, "up")
    ip("-n", NAMESPACE, "address", "replace", f"{API_ADDRESS}/{LINK_PREFIX}", "dev", CLOUD_END)
    ip("-n", NAMESPACE, "link", "set", CLOUD_END, "up")
    ip("-n", NAMESPACE, "route", "replace", "default", "via", GATEWAY_ADDRESS)
    ip("route", "replace", FLOATING_NETWORK, "via", API_ADDRESS)


def remove_namespace(name: str) -> None:
    """Delete a network namespace if it is there; its veth ends and the link go with it."""
    if (NAMESPACES / name).exists():
        ip("netns", "delete", name)


def list_namespaces() -> list[str]:
    """Return the names of the machine's network namespaces."""
    return sorted(path.name for path in NAMESPACES.iterdir()) if NAMESPACES.exists() else []


def processes_in(name: str) -> list[int]:
    """Return the ids of the processes in a namespace."""
    if not (NAMESPACES / name).exists():
        return []
    return [int(word) for word in ip("netns", "pids", name, check=False).split()]
