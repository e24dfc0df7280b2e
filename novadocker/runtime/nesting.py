# SPDX-License-Identifier: Apache-2.0
"""The control groups of a server that runs containers itself, in its user namespace.

An engine inside makes a control group for each container, below the server's own group. The server
gets the directory of its group, but not the files with its limits, and limits apply to all groups
below. With cgroup v2, runc changes the owner of the directory (cgroups(7), "Delegating a
hierarchy"). With cgroup v1 this module does the same before runc starts.
"""

import posix

from novadocker.runtime.tree import Owner

_INSIDE = "/sys/fs/cgroup"
# Limits of blkio do not apply to the groups below, and the classes of net_cls and net_prio are not
# limits, so a server could leave them.
_KEPT = frozenset(("blkio", "net_cls", "net_prio"))
# The files that move processes into a group.
_DELEGATED = ("cgroup.procs", "tasks")
# A group below gets the CPUs and memory nodes of its parent. Not all engines set them for groups
# above a container's, and a process can't enter a group without.
_CLONE = "cgroup.clone_children"
_FLAGS = ["nosuid", "noexec", "nodev"]


def hierarchies(table: bytes) -> list[str]:
    """Return the directories of the hierarchies of cgroup v1 that a server may divide.

    :param table: the content of /proc/mounts
    """
    found = []
    for line in table.split(b"\n"):
        _, point, kind, options, *_ = (*line.split(b" "), b"", b"", b"", b"")
        parent, _, name = point.decode(errors="surrogateescape").rpartition("/")
        if kind == b"cgroup" and parent == _INSIDE:
            controllers = options.decode(errors="surrogateescape").split(",")
            if _KEPT.isdisjoint(controllers):
                found.append(name)
    return found


def limiting(folder: str, names: list[str]) -> list[str]:
    """Return those of the hierarchies whose limits apply to all groups below.

    Before Linux 5.11, a hierarchy of memory in which the host has not set memory.use_hierarchy
    counts each group for itself, so a server could leave its limit.

    :param folder: the directory of the hierarchies
    """
    found = []
    for name in names:
        try:
            with open(f"{folder}/{name}/memory.use_hierarchy", "rb") as source:
                limits = source.read().strip() == b"1"
        except FileNotFoundError:
            limits = True
        if limits:
            found.append(name)
    return found


def delegate(folder: str, names: list[str], group: str, owner: Owner) -> None:
    """Create the control group in each hierarchy for runc, and give its directory to the server.

    runc uses a group that exists, and deletes it with the container. Idempotent.

    :param folder: the directory of the hierarchies
    :param names: directories of hierarchies in it
    :param owner: the user and group on the host of the server's root
    """
    for name in names:
        path = f"{folder}/{name}"
        for part in group.strip("/").split("/"):
            path = f"{path}/{part}"
            try:
                posix.mkdir(path, 0o755)
            except FileExistsError:
                continue
        posix.chown(path, owner.uid, owner.gid)
        for file in _DELEGATED:
            posix.chown(f"{path}/{file}", owner.uid, owner.gid)
        with open(f"{path}/{_CLONE}", "wb", buffering=0) as output:
            output.write(b"1")


def mounts(folder: str, names: list[str], group: str) -> list[dict[str, object]]:
    """Return the mounts at /sys/fs/cgroup of a server that may divide these hierarchies.

    :param folder: the directory of the hierarchies on the host
    """
    base: dict[str, object] = {
        "destination": _INSIDE,
        "type": "tmpfs",
        "source": "tmpfs",
        # systemd must not mount the other hierarchies, because engines use each one that they find.
        "options": ["ro", *_FLAGS, "mode=755", "size=64k"],
    }
    found = [base]
    for name in names:
        own: dict[str, object] = {
            "destination": f"{_INSIDE}/{name}",
            "type": "bind",
            "source": f"{folder}/{name}{group}",
            "options": ["bind", *_FLAGS],
        }
        found.append(own)
    return found
