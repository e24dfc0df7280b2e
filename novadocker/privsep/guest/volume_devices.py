# SPDX-License-Identifier: Apache-2.0
"""The files below /run that say which volumes each instance of this host has; they need root.

The directory of an instance below ``records.DISKS`` has the file ``devices`` with its volumes, and
the directories ``by-id`` and ``block`` that are ``/dev/disk/by-id`` and ``/sys/block`` in its
containers. They exist until the instance leaves the host or the host reboots.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from novadocker import naming
from novadocker.linux.files import replace_file
from novadocker.runtime import record as records

FOLDER = Path(records.DISKS)
BY_ID, BLOCK = "by-id", "block"

# As udev names the disk of a virtual machine: virtio_blk keeps 20 characters of the serial number.
_SERIAL_CHARACTERS = 20


@dataclass(frozen=True)
class VolumeDevice:
    """A volume of an instance as a block device of this host.

    :ivar path: path in the instance, such as ``/dev/vdb``
    :ivar source: path on the host
    :ivar shared: True if other instances may have the volume, too (multi-attach)
    :ivar root: True if the volume's file system is the root directory of the instance, which then
        has no device node of it
    :ivar rates: ``linux.cgroup.DiskRates`` as a dictionary; empty without limits
    """

    volume_id: str
    path: str
    source: str
    major: int
    minor: int
    writable: bool
    shared: bool
    root: bool = False
    rates: Mapping[str, int] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """The device number."""
        return os.makedev(self.major, self.minor)

    @property
    def record(self) -> records.BlockDevice:
        """The device in the record of a container."""
        return records.BlockDevice(
            self.path, self.source, self.major, self.minor, self.writable, dict(self.rates)
        )


@contextmanager
def locked() -> Iterator[None]:
    """Lock the files of all instances, also for the other privileged processes of this host.

    The kernel releases the lock of a process that dies.
    """
    with suppress(FileExistsError):
        FOLDER.parent.mkdir(0o755)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    lock = os.open(FOLDER.with_name(f"{FOLDER.name}.lock"), flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def held(instance_uuid: str) -> tuple[VolumeDevice, ...]:
    """Return the volumes of an instance. Needs no privilege."""
    return _read(_folder(instance_uuid))


def recorded(
    instance_uuid: str,
) -> tuple[list[records.BlockDevice], records.BlockDevice | None]:
    """Return an instance's volumes for the records of its containers: its disks and its root."""
    found = held(instance_uuid)
    root = next((device.record for device in found if device.root), None)
    return [device.record for device in found if not device.root], root


def root_of(instance_uuid: str) -> VolumeDevice | None:
    """Return the volume that an instance boots from; None without one. Needs no privilege."""
    return next((device for device in held(instance_uuid) if device.root), None)


def others(instance_uuid: str) -> Iterator[VolumeDevice]:
    """Yield the volumes of the other instances of this host."""
    own = naming.namespace_name(instance_uuid)
    with suppress(FileNotFoundError):
        for name in os.listdir(FOLDER):
            if name != own:
                yield from _read(FOLDER / name)


def instances() -> set[str]:
    """Return the UUIDs of the instances that have files here. Needs no privilege."""
    try:
        names = os.listdir(FOLDER)
    except FileNotFoundError:
        return set()
    return {uuid for name in names if (uuid := naming.instance_of_namespace(name))}


def write(instance_uuid: str, devices: tuple[VolumeDevice, ...]) -> None:
    """Replace the volumes of an instance."""
    folder = prepare(instance_uuid)
    content = json.dumps([asdict(device) for device in devices]).encode()
    replace_file(folder / "devices", content, mode=0o644, sync=False)
    names = folder / BY_ID
    wanted = {
        link_name(device): f"../../{os.path.basename(device.path)}"
        for device in devices
        if not device.root
    }
    for name in os.listdir(names):
        if name not in wanted or os.readlink(names / name) != wanted[name]:
            (names / name).unlink()
    for name, target in wanted.items():
        with suppress(FileExistsError):
            (names / name).symlink_to(target)


def prepare(instance_uuid: str) -> Path:
    """Create the directories of an instance. Idempotent."""
    folder = _folder(instance_uuid)
    for path in (FOLDER.parent, FOLDER, folder, folder / BY_ID, folder / BLOCK):
        with suppress(FileExistsError):
            path.mkdir(0o755)
            path.chmod(0o755)
    return folder


def link(instance_uuid: str, device: VolumeDevice) -> None:
    """Add a volume to /sys/block of a running container. Idempotent."""
    name = _block_name(instance_uuid, device)
    name.unlink(missing_ok=True)
    name.symlink_to(records.block_link(device.major, device.minor))


def unlink(instance_uuid: str, device: VolumeDevice) -> None:
    """Remove a volume from /sys/block of a running container. Idempotent."""
    _block_name(instance_uuid, device).unlink(missing_ok=True)


def _block_name(instance_uuid: str, device: VolumeDevice) -> Path:
    return prepare(instance_uuid) / BLOCK / os.path.basename(device.path)


def forget(instance_uuid: str) -> None:
    """Delete the files of an instance. Idempotent."""
    with suppress(FileNotFoundError):
        shutil.rmtree(_folder(instance_uuid))


def link_name(device: VolumeDevice) -> str:
    """Return the name of the link to a volume in ``/dev/disk/by-id``."""
    return f"virtio-{device.volume_id[:_SERIAL_CHARACTERS]}"


def without_volumes(rules: list[Mapping[str, Any]], annotation: str) -> list[Mapping[str, Any]]:
    """Return the rules of a container's configuration without those of its volumes; pure.

    :param annotation: ``records.DEVICES_ANNOTATION`` of the configuration
    """
    numbers = annotation.split()
    return [
        rule
        for rule in rules
        if rule.get("type") != "b" or f"{rule.get('major')}:{rule.get('minor')}" not in numbers
    ]


def _read(folder: Path) -> tuple[VolumeDevice, ...]:
    try:
        content = (folder / "devices").read_bytes()
    except FileNotFoundError:
        return ()
    return tuple(VolumeDevice(**fields) for fields in json.loads(content))


def _folder(instance_uuid: str) -> Path:
    return FOLDER / naming.namespace_name(instance_uuid)
