# SPDX-License-Identifier: Apache-2.0
"""The root directory of a server that boots from a volume.

The shim mounts the volume's file system in a mount namespace of its own, in which runc then creates
the container. So the file system is mounted as long as the container's processes exist, and neither
the end of the engine nor that of nova-compute leaves a mount on the host. The engine has an overlay
for the container beside it, which is not used.
"""

import posix

from novadocker.runtime import idmapped, record


def enter(source: str) -> str:
    """Mount the file system of a device in a new mount namespace; return the root directory.

    The calling process is in the new mount namespace afterwards.

    :param source: path of the device
    """
    idmapped.make_places()
    idmapped.leave_host()
    idmapped.mount(source, idmapped.PLACE, record.ROOT_KIND, 0, record.ROOT_OPTIONS)
    return idmapped.PLACE


def map_owners(volumes: list[str], user_namespace: str, first: int) -> None:
    """Map the owners of the root directory, which ``enter`` has mounted, and of volumes.

    The parameters are those of ``idmapped.enter``.
    """
    user = posix.open(user_namespace, posix.O_RDONLY | posix.O_CLOEXEC)
    mapped = idmapped.clone_mapped(idmapped.PLACE, user)
    idmapped.unmount(idmapped.PLACE)
    idmapped.attach(mapped, idmapped.PLACE)
    idmapped.map_volumes(volumes, user, first)
    posix.close(mapped)
    posix.close(user)


def is_engine_volume(source: str) -> bool:
    """Return True if the source of a bind mount is an anonymous volume of the engine."""
    above, _, last = source.rpartition("/")
    return last == "_data" and above.rpartition("/")[0].endswith("/volumes")
