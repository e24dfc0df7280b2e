# SPDX-License-Identifier: Apache-2.0
"""Privileged: the directories of a container's files that containerd's image store has."""

import re
import subprocess

from novadocker import engine_paths, privsep
from novadocker.privsep import arguments

_SOCKET = re.compile(r"/(?:[\w.-]+/)*[\w.-]+")
# The namespace of the engine's containers in containerd (moby/daemon/config).
_NAMESPACE = "moby"
_SECONDS = 30
_FOLDER = re.compile(engine_paths.SNAPSHOT_PATH)


@privsep.storage_pctxt.entrypoint
def list_folders(socket: str, container: str) -> list[str]:
    """Return the directory of a container's own files, then those of its layers from the highest.

    ``ctr``, which is part of containerd, asks for the mount of the container's snapshot. The tenant
    has no influence on the answer, as on the mounts of the container's processes.

    :param socket: path of containerd's socket
    :param container: id of the container, which the engine gives its snapshot as the name
    :raises ValueError: an argument is malformed
    :raises OSError: containerd does not answer, or has no such directories
    """
    address = arguments.without_detours(arguments.text(_SOCKET, socket))
    command = (
        *("ctr", "--address", address, "--namespace", _NAMESPACE),
        *("snapshots", "--snapshotter", "overlayfs", "mounts", "/"),
        arguments.container_id(container),
    )
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise OSError("the program ctr of containerd is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise OSError(f"containerd does not answer within {_SECONDS} seconds") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise OSError(f"containerd does not tell the directories of the container: {lines[-1]}")
    return _folders(done.stdout)


def _folders(mount: str) -> list[str]:
    """Return the directories in a command like ``mount -t overlay overlay / -o upperdir=...``.

    :raises OSError: the command mounts no overlay of directories of containerd
    """
    words = mount.split()
    if words[:4] == ["mount", "-t", "overlay", "overlay"]:
        options = dict(option.partition("=")[::2] for option in words[-1].split(","))
        found = [options.get("upperdir", ""), *options.get("lowerdir", "").split(":")]
        if all(_FOLDER.fullmatch(folder) for folder in found):
            return [arguments.without_detours(folder) for folder in found]
    raise OSError("containerd's snapshot of the container is no overlay")
