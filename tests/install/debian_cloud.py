# SPDX-License-Identifier: Apache-2.0
"""Debian's own Keystone, Placement, Glance and Nova in a system of the tests."""

import shutil
import time
from pathlib import Path

from devcloud.archive import build_archive
from tests.install import system
from tests.install.system import System

PACKAGES = (
    *("mariadb-server", "rabbitmq-server", "memcached", "keystone", "placement-api", "glance-api"),
    *("nova-api", "nova-conductor", "nova-scheduler", "python3-openstackclient", "sudo"),
    "busybox-static",
)
SLEEP = "86399"
"""Argument of a server's only process, by which the process is found."""

_REGISTRATION_SECONDS = 120

_SERVICES = (
    *("keystone", "placement-api", "glance-api", "nova-api", "nova-api-metadata"),
    *("nova-conductor", "nova-scheduler"),
)
_ONE_PROCESS = (
    "s/^processes = .*/processes = 1/; s/^threads = .*/threads = 1/; /^apparmor/d; s/,apparmor//"
)


def prepare(root: Path) -> None:
    """Put the script that starts the cloud into a root directory that has its packages."""
    for name in ("cloud", "no-networks"):
        shutil.copy(system.HERE / "inside" / name, root / "srv")
    # The script starts these services, with one process each.
    system.prepare(root, "systemctl", "disable", *_SERVICES)
    system.prepare(root, "sh", "-c", f"sed -i '{_ONE_PROCESS}' /etc/*/*-uwsgi.ini")


def start(running: System) -> None:
    """Start the cloud, which has no compute host and no networks."""
    running.run("/srv/cloud", seconds=900)


def openstack(running: System, *words: str) -> str:
    """Run the client as the administrator and return its output."""
    command = '. /root/openrc; exec openstack "$@"'
    return running.run("sh", "-c", command, "sh", *words, seconds=300)


def wait_for_host(running: System) -> None:
    """Map the compute host to its cell, as soon as nova-compute has registered it."""
    end = time.monotonic() + _REGISTRATION_SECONDS
    while "docker" not in (listed := openstack(running, "hypervisor", "list")):
        if time.monotonic() > end:
            raise system.CommandFailed(f"Nova has no compute host:\n{listed}")
        running.run("su", "-s", "/bin/sh", "-c", "nova-manage cell_v2 discover_hosts", "nova")


def wait_for_report(running: System) -> None:
    """Wait until a nova-compute that was restarted reports, which it does when it is initialized.

    Until then it undoes the tasks of servers that it takes for interrupted ones.
    """
    listed = ("compute", "service", "list", "--service", "nova-compute", "-c", "Updated At")
    before = openstack(running, *listed)
    end = time.monotonic() + _REGISTRATION_SECONDS
    while openstack(running, *listed) == before:
        if time.monotonic() > end:
            raise system.CommandFailed(f"nova-compute does not report:\n{before}")


def write_image(folder: Path, target: Path, tags: tuple[str, ...] = ()) -> None:
    """Write the archive of an image whose only process sleeps.

    :param folder: an existing directory for its files
    """
    rootfs = folder / "rootfs"
    (rootfs / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", rootfs / "bin")
    (rootfs / "bin/sleep").symlink_to("busybox")
    build_archive(rootfs, target, command=["/bin/sleep", SLEEP], tags=tags)


def process(running: System) -> str:
    """Return the process id of the server in the system, and the time of its start."""
    pid = running.run("pgrep", "-x", "-f", f"/bin/sleep {SLEEP}").strip()
    return running.run("stat", "--format=%n %Y", f"/proc/{pid}")
