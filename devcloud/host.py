# SPDX-License-Identifier: Apache-2.0
"""Compute hosts as namespaces of this machine. Standard library only."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from devcloud import network
from devcloud.settings import Host, Settings
from devcloud.steps import StepFailed

PRIVATE_FOLDERS = (network.NAMESPACES, Path("/run/novadocker"))
"""Directories that two hosts on one machine must not share.

During a migration, both hosts have files of the same instance.
"""


def inside(settings: Settings, host: Host, command: Sequence[str | Path]) -> list[str | Path]:
    """Return a command that runs on a host."""
    mounts = settings.host_mounts(host)
    enter: list[str | Path] = ["nsenter", f"--net={network.NAMESPACES / host.namespace}"]
    return [*enter, *([f"--mount={mounts}"] if mounts else []), "--", *command]


def ensure_namespaces(settings: Settings, host: Host) -> None:
    """Create a host's namespaces and its links to the first host. Idempotent."""
    network.ensure_namespace(host.namespace)
    mounts = settings.host_mounts(host)
    if mounts is None:
        network.ensure_flat_bridge()
        return
    network.ensure_cables(host)
    if subprocess.run(inside(settings, host, ["true"]), check=False).returncode != 0:
        make_mount_namespace(mounts)


def make_mount_namespace(path: Path) -> None:
    """Create a mount namespace, pinned by a file, with empty directories that hosts do not share.

    :raises StepFailed: the kernel refused.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    for folder in PRIVATE_FOLDERS:
        folder.mkdir(parents=True, exist_ok=True)
    hide = [f"mount -t tmpfs -o mode=0755 tmpfs {folder}" for folder in PRIVATE_FOLDERS]
    parent: list[list[str | Path]] = [
        # The kernel pins a mount namespace by a file on a private mount only.
        ["mount", "--bind", path.parent, path.parent],
        ["mount", "--make-private", path.parent],
    ]
    if subprocess.run(["mountpoint", "--quiet", path.parent], check=False).returncode == 0:
        parent = []
    private: list[str | Path] = ["unshare", f"--mount={path}", "--propagation=private", "sh", "-ec"]
    private.append("; ".join(hide))
    for command in (*parent, private):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise StepFailed(
                f"The command {' '.join(map(str, command))} failed: {done.stderr.strip()}",
                "python3 -m devcloud down, then up again",
            )
