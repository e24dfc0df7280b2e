# SPDX-License-Identifier: Apache-2.0
"""Privileged functions for the config drives of this host, below /var/lib/novadocker.

Only root can read the directory, because config drives contain passwords. It survives a restart of
the host, because a container does not start if the source of a bind mount is missing. If an image
asks for a block device, a copy of the config drive's image is attached to a loop device before each
start. The engine finds the loop device by a symbolic link below /run.
"""

import os
import re
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from oslo_concurrency import lockutils

from novadocker import naming, privsep
from novadocker.linux import loop
from novadocker.privsep import arguments
from novadocker.privsep.storage import drive_files
from novadocker.runtime import record as records

FOLDER = Path(records.CONFIG_DRIVES)
LINKS = Path("/run/novadocker/drives")

HOST = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,255}")
# One sector; blkid(8) finds no label on such a device.
_HOLDER_BYTES = 512


def folder(host: str, instance_uuid: str) -> str:
    """Return the directory of an instance's config drive.

    :param host: nova-compute's ``[DEFAULT] host``, because several may run on one machine
    :raises ValueError: an argument is malformed
    """
    return str(_folder(host, instance_uuid))


def files_folder(host: str, instance_uuid: str) -> str:
    """Return the directory of the files in an instance's config drive.

    :param host: nova-compute's ``[DEFAULT] host``, because several may run on one machine
    :raises ValueError: an argument is malformed
    """
    return str(_folder(host, instance_uuid) / drive_files.FILES)


def device_link(instance_uuid: str) -> str:
    """Return the path of the symbolic link to the block device of an instance's config drive.

    The link exists while the device is attached.

    :raises ValueError: ``instance_uuid`` is malformed
    """
    return str(LINKS / arguments.instance_uuid(instance_uuid))


@privsep.interior_pctxt.entrypoint
def write_drive(
    host: str,
    instance_uuid: str,
    files: Mapping[str, bytes],
    owner: tuple[int, int] = (0, 0),
    image: bytes = b"",
) -> None:
    """Write an instance's config drive. Replaces an older one.

    :param files: contents by relative path
    :param owner: user and group id on the host of the container's root
    :param image: content of the block device; empty if the instance gets none
    :raises ValueError: an argument is malformed or too large
    """
    target = _folder(host, instance_uuid)
    user, group = map(arguments.id_number, arguments.items(owner))
    for content in (*arguments.mapping(files).values(), image):
        arguments.data(drive_files.MOST_BYTES, content)
    drive_files.write(target, drive_files.Drive(files, (user, group), image))


@privsep.interior_pctxt.entrypoint
def list_drives(host: str) -> list[str]:
    """Return the UUIDs of the instances that have a config drive.

    :raises ValueError: the argument is malformed
    """
    try:
        names = os.listdir(_host_folder(host))
    except FileNotFoundError:
        return []
    return [name for name in names if naming.UUID.fullmatch(name)]


@privsep.interior_pctxt.entrypoint
def delete_drive(host: str, instance_uuid: str) -> None:
    """Delete an instance's config drive. Does nothing if it does not exist.

    :raises ValueError: an argument is malformed
    """
    drive_files.delete(_folder(host, instance_uuid))


@privsep.network_pctxt.entrypoint
def attach_device(host: str, instance_uuid: str) -> None:
    """Attach the image of an instance's config drive to a loop device. Idempotent.

    The number of the loop device stays in use until ``detach_device``, whatever the container does
    with the device.

    :raises ValueError: an argument is malformed
    :raises OSError: the config drive has no image, no loop device is free, or the kernel refuses
    """
    folder = _folder(host, instance_uuid)
    with lockutils.lock(f"novadocker-drive-{instance_uuid}"), ExitStack() as opened:
        if _is_attached(opened, instance_uuid):
            return
        for links in (LINKS.parent, LINKS):
            with suppress(FileExistsError):
                links.mkdir(0o755)
                links.chmod(0o755)
        copy = _copy_in_memory(opened, drive_files.read_image(folder))
        path, device = loop.attach(copy, instance_uuid)
        opened.callback(os.close, device)
        # A container can detach a loop device that it can open (LOOP_CLR_FD needs no capability).
        # The kernel postpones that while another opener remains, so a second loop device, which
        # no container gets, has the first one as its backing file. A file descriptor of this
        # process would not do, because it closes when nova-compute restarts.
        holder_path, holder = loop.attach(device, instance_uuid, _HOLDER_BYTES)
        opened.callback(os.close, holder)
        _replace_link(_holder_link(instance_uuid), holder_path)
        _replace_link(Path(device_link(instance_uuid)), path)
        # Up to here the kernel would detach both devices if this process died.
        loop.keep(holder)


@privsep.network_pctxt.entrypoint
def detach_device(host: str, instance_uuid: str) -> None:
    """Detach the loop device of an instance's config drive, whose container must not run.

    Does nothing if no device is attached.

    :raises ValueError: an argument is malformed
    :raises OSError: the kernel refuses
    """
    _folder(host, instance_uuid)
    with lockutils.lock(f"novadocker-drive-{instance_uuid}"), ExitStack() as opened:
        holder = _open_holder(opened, instance_uuid)
        if holder is not None:
            # The kernel then closes the held device, and detaches it with its last opener.
            loop.detach(holder)
        Path(device_link(instance_uuid)).unlink(missing_ok=True)
        _holder_link(instance_uuid).unlink(missing_ok=True)


def _is_attached(opened: ExitStack, instance_uuid: str) -> bool:
    """Return True if the link leads to a loop device that the instance's holder keeps open."""
    holder = _open_holder(opened, instance_uuid)
    if holder is None:
        return False
    with suppress(FileNotFoundError):
        number = os.stat(device_link(instance_uuid)).st_rdev
        found = loop.status(holder)
        return found is not None and found.backing_device == number
    return False


def _open_holder(opened: ExitStack, instance_uuid: str) -> int | None:
    """Return a file descriptor of the loop device that keeps an instance's device attached.

    Returns None if there is none. ``opened`` closes the file descriptor.
    """
    try:
        holder = os.open(_holder_link(instance_uuid), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    opened.callback(os.close, holder)
    # An administrator may have detached the device, and another program may have its number.
    found = loop.status(holder)
    return holder if found is not None and found.name == instance_uuid else None


def _copy_in_memory(opened: ExitStack, content: bytes) -> int:
    """Return a file descriptor of an image in memory. ``opened`` closes the file descriptor.

    Every container can read the paths of all backing files in /sys/block, and a file in memory has
    no path.
    """
    copy = os.memfd_create("config-2")
    opened.callback(os.close, copy)
    with os.fdopen(copy, "wb", closefd=False) as output:
        output.write(content)
    return copy


def _holder_link(instance_uuid: str) -> Path:
    """Return the path of the link to the loop device that keeps an instance's device attached."""
    return Path(f"{device_link(instance_uuid)}.holder")


def _replace_link(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def _folder(host: str, instance_uuid: str) -> Path:
    return _host_folder(host) / arguments.instance_uuid(instance_uuid)


def _host_folder(host: str) -> Path:
    return FOLDER / arguments.text(HOST, host)
