# SPDX-License-Identifier: Apache-2.0
"""The leftovers of servers on the machine and in the cloud, read from their owners."""

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from openstack.connection import Connection

from devcloud.host import inside
from devcloud.settings import Host, Settings
from devcloud.switch import vsctl
from novadocker.privsep.network import id_ranges
from tests.cloud.owners import ask_placement, engine_of

# nova-compute retries failed deletions when it next reports its resources.
SETTLE_SECONDS = 45

NAMESPACES = Path("/run/netns")
RECORDS = Path("/run/novadocker/containers")

Leaks = Mapping[str, frozenset[str]]


def inventory(settings: Settings, admin: Connection) -> Leaks:
    """Return the names of all objects that a server can leave, by kind."""
    containers, devices, ports, staged = set(), set(), set(), set()
    records, namespaces, ids = set(), set(), set()
    for host in settings.hosts:
        client = engine_of(settings, host)
        # The engine has released the name of a container that it is deleting.
        containers |= {(row["Names"] or [row["Id"]])[0] for row in client.containers(all=True)}
        staged |= set(Path(client.info()["DockerRootDir"]).glob("novadocker-staging/*"))
        staged |= set(settings.host_data(host).glob("nova/arrivals/*"))
        client.close()
        links = ask_host(settings, host, "ip", "-o", "link")
        folders = {RECORDS: records, NAMESPACES: namespaces, id_ranges.FOLDER: ids}
        for folder, found_there in folders.items():
            found_there |= {
                f"{host.name} {name}" for name in ask_host(settings, host, "ls", folder).split()
            }
        # The agents' own taps are internal ports of the switch, not veth devices.
        devices |= {
            line.split()[1].partition("@")[0]
            for line in links.splitlines()
            if line.split()[1].startswith(("tap", "qvb", "qvo")) and "@" in line.split()[1]
        }
        rows = vsctl(
            settings, host, "--columns=name", "--format=csv", "--no-headings", "find",
            "interface", "external_ids:vm-uuid!=''",
        )  # fmt: skip
        ports |= set(rows.split())
    allocations: set[str] = set()
    for provider in ask_placement(admin, "/resource_providers")["resource_providers"]:
        path = f"/resource_providers/{provider['uuid']}/allocations"
        allocations |= ask_placement(admin, path)["allocations"].keys()
    # OVN's metadata agent keeps a device of each network for a while after the last server.
    of_networks = {f"tap{network.id[:10]}0" for network in admin.network.networks()}
    found = {
        "containers": containers,
        "veth devices": devices - of_networks,
        "switch ports": ports,
        "unfinished arrivals": set(map(str, staged)),
        "runtime records": records,
        "ranges of ids": ids,
        "network namespaces": {name for name in namespaces if " nova-" in name},
        "config drives": {
            path.name for path in Path("/var/lib/novadocker/config-drives").glob("*/*")
        },
        "loop devices": {
            path.read_text().strip() for path in Path("/sys/block").glob("loop*/loop/backing_file")
        },
        "mounts": {
            line.split()[4]
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if str(settings.data) in line and "/merged" in line
        },
        "volumes": {
            volume.id for volume in admin.block_storage.volumes(details=False, all_projects=True)
        },
        "volume attachments": {
            attachment.id for attachment in admin.block_storage.attachments(all_projects=True)
        },
        "Neutron ports": {
            port.id
            for port in admin.network.ports()
            if (port.device_owner or "").startswith("compute:")
        },
        "Placement allocations": allocations,
    }
    return {kind: frozenset(items) for kind, items in found.items()}


def ask_host(settings: Settings, host: Host, *command: str | Path) -> str:
    """Return the output of a command on a compute host."""
    done = subprocess.run(inside(settings, host, command), capture_output=True, text=True)
    return done.stdout


def leaked(before: Leaks, after: Leaks) -> dict[str, list[str]]:
    """Return the objects that exist now and did not exist before."""
    return {
        kind: sorted(items - before[kind]) for kind, items in after.items() if items - before[kind]
    }


def leaked_for_good(settings: Settings, admin: Connection, before: Leaks) -> dict[str, list[str]]:
    """Return the leaked objects that still exist after the time for pending deletions."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (found := leaked(before, inventory(settings, admin))) and time.monotonic() < deadline:
        time.sleep(1)
    return found
