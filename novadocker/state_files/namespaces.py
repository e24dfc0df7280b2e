# SPDX-License-Identifier: Apache-2.0
"""The marks of the network namespaces that the driver created or uses.

Another program may mount a namespace ``nova-<uuid>`` in /run/netns. So a file of the same name
below /run/novadocker/networks has the device and inode number of the driver's namespace. Like
/run/netns, it exists until the next boot of the host.
"""

import os
from contextlib import suppress
from pathlib import Path

from novadocker import naming
from novadocker.linux.files import replace_file

RUN = Path("/run")
NAMESPACES = "netns"

MARKS = "novadocker/networks"
_THREAD_NAMESPACE = "/proc/thread-self/ns/net"


def mark(namespace: str) -> None:
    """Mark the calling thread's network namespace as the driver's. Idempotent.

    :param namespace: the path below /run/netns at which it is or will be mounted
    """
    path = _mark_of(Path(namespace))
    for folder in (path.parent.parent, path.parent):
        with suppress(FileExistsError):
            folder.mkdir(0o755)
    content = _identity(_THREAD_NAMESPACE)
    if _read(path) != content:
        replace_file(path, content, mode=0o644, sync=False)


def unmark(namespace: str) -> None:
    """Delete the mark of a network namespace. Idempotent."""
    _mark_of(Path(namespace)).unlink(missing_ok=True)


def is_marked(namespace: str | Path) -> bool:
    """Return True if a network namespace exists and has the driver's mark.

    :param namespace: a path below /run/netns
    """
    try:
        found = _identity(namespace)
    except FileNotFoundError:
        return False
    return _read(_mark_of(Path(namespace))) == found


def marked(run: Path = RUN) -> set[str]:
    """Return the UUIDs of the instances whose network namespaces exist and are marked.

    :param run: the directory /run
    :raises OSError: the marks can't be listed
    """
    try:
        names = os.listdir(run / MARKS)
    except FileNotFoundError:
        return set()
    uuids = {name: naming.instance_of_namespace(name) for name in names}
    return {uuid for name, uuid in uuids.items() if uuid and is_marked(run / NAMESPACES / name)}


def _mark_of(namespace: Path) -> Path:
    return namespace.parent.parent / MARKS / namespace.name


def _identity(namespace: str | Path) -> bytes:
    status = os.stat(namespace)
    return f"{status.st_dev}:{status.st_ino}\n".encode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
