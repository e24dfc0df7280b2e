# SPDX-License-Identifier: Apache-2.0
"""The devices of the storage driver devicemapper, read through temporary ones.

A container's file system is a thin device of the engine's pool. Where the pool is not active any
more, a temporary pool is made of the files that the engine kept it in. Whatever the kernel writes
meanwhile, above all a journal that it replays, goes to snapshots in temporary files and never to
the original. The devices go with the last mount of them. (The kernel's thin-provisioning.rst and
snapshot.rst; the engine's daemon/graphdriver/devmapper.)
"""

from __future__ import annotations

import os
import secrets
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from novadocker.recovery.commands import run
from novadocker.recovery.dataroot import DataRoot, RecoveryError, read_json
from novadocker.recovery.layers import FileSystem

_SECTOR = 512
# what a write is copied in: 4 KiB
_CHUNK_SECTORS = 8
# struct thin_disk_superblock of the kernel's dm-thin-metadata.c
_MAGIC, _MAGIC_AT, _BLOCK_SIZE_AT = 27022010, 32, 336
# the second is for XFS: all devices are copies of one, with one UUID
_MOUNT_OPTIONS = {"ext4": "ro,nosuid,nodev", "xfs": "ro,nosuid,nodev,nouuid"}
# the engine counts devices up; as many may have come after the last one with a record
_NEWER = 64
# a thin device's number has 24 bits
_NUMBERS = range(1 << 24)


@dataclass(frozen=True)
class ThinDevice:
    """A thin device as the engine recorded it."""

    number: int
    sectors: int


def read_device(root: DataRoot, layer: str) -> ThinDevice:
    """Return the device of a layer.

    :raises RecoveryError: it is not recorded, or the record is damaged
    """
    path = _folder(root) / "metadata" / layer
    stored = read_json(path)
    number, size = stored.get("device_id"), stored.get("size")
    if not isinstance(number, int) or number not in _NUMBERS:
        raise RecoveryError(f"{path} is damaged: it names no device")
    if not isinstance(size, int) or size <= 0:
        raise RecoveryError(f"{path} is damaged: it has no size")
    return ThinDevice(number, size // _SECTOR)


def unnamed_devices(root: DataRoot) -> Iterator[ThinDevice]:
    """Yield all devices that there may be beside those with a record.

    :raises RecoveryError: no device has a record
    """
    known = []
    for path in (_folder(root) / "metadata").iterdir():
        try:
            known.append(read_device(root, path.name))
        except RecoveryError:
            continue
    if not known:
        raise RecoveryError("the records of all devices are damaged")
    numbers = {device.number for device in known}
    # what lies behind the end of a device reads as zeros
    sectors = max(device.sectors for device in known)
    for number in range(max(numbers) + _NEWER):
        if number not in numbers:
            yield ThinDevice(number, sectors)


def block_sectors(superblock: bytes) -> int:
    """Return the size of a pool's blocks: pure.

    :param superblock: the begin of its metadata
    :raises RecoveryError: that is none
    """
    if len(superblock) < _BLOCK_SIZE_AT + 4:
        raise RecoveryError("the pool's metadata is cut off")
    (magic,) = struct.unpack_from("<Q", superblock, _MAGIC_AT)
    (sectors,) = struct.unpack_from("<I", superblock, _BLOCK_SIZE_AT)
    if magic != _MAGIC or sectors == 0:
        raise RecoveryError("the pool's metadata is damaged")
    return int(sectors)


@contextmanager
def opened(root: DataRoot, layer: str) -> Iterator[FileSystem]:
    """Have a layer's file system mounted somewhere; what is mounted of it then outlives the body.

    :raises RecoveryError: the device is not found, or the kernel refuses it
    """
    with ExitStack() as undo:
        work = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="novadocker-thin-")))
        devices = _Devices(work, undo)
        # what servers that run have written is on their devices then
        os.sync()
        pool = _active_pool(root) or _made_pool(root, devices)
        found = list(_mounted(_candidates(root, layer), pool, work, undo))
        if len(found) != 1:
            raise RecoveryError(
                f"{len(found)} devices of the thin pool may be that of {layer}, whose record is "
                "damaged"
            )
        yield FileSystem(found[0], ("rootfs",))


def _candidates(root: DataRoot, layer: str) -> tuple[ThinDevice, ...]:
    try:
        return (read_device(root, layer),)
    except RecoveryError:
        return tuple(unnamed_devices(root))


def _mounted(
    candidates: Sequence[ThinDevice], pool: Path, work: Path, undo: ExitStack
) -> Iterator[Path]:
    """Mount those devices that there are; one that must be there is the only one."""
    for device in candidates:
        tried = undo.enter_context(ExitStack())
        target = work / str(device.number)
        try:
            _mount(device, pool, _Devices(work, tried), target)
        except RecoveryError:
            tried.close()
            if len(candidates) == 1:
                raise
        else:
            yield target


def _mount(device: ThinDevice, pool: Path, devices: _Devices, target: Path) -> None:
    """Mount a device.

    :raises RecoveryError: there is none, or it has no file system that the engine makes
    """
    table = f"0 {device.sectors} thin {pool} {device.number}"
    top = devices.snapshot(devices.create(table, read_only=True), device.sectors)
    kind = run("blkid", "-p", "-s", "TYPE", "-o", "value", str(top)).strip()
    if kind not in _MOUNT_OPTIONS:
        raise RecoveryError(f"device {device.number} has no file system of the engine's")
    target.mkdir()
    run("mount", "-t", kind, "-o", _MOUNT_OPTIONS[kind], str(top), str(target))
    devices.undo.callback(run, "umount", str(target))


class _Devices:
    """Makes devices; ``undo`` has them go as soon as nobody uses them."""

    def __init__(self, work: Path, undo: ExitStack) -> None:
        self._work = work
        self.undo = undo

    def create(self, table: str, *, read_only: bool = False) -> Path:
        name = f"novadocker-recover-{secrets.token_hex(6)}"
        options = ["--readonly"] if read_only else []
        run("dmsetup", "create", name, *options, "--table", table)
        self.undo.callback(run, "dmsetup", "remove", "--deferred", name)
        return Path("/dev/mapper", name)

    def loop(self, file: Path, *, read_only: bool) -> Path:
        options = ["--read-only"] if read_only else []
        found = run("losetup", *options, "--find", "--show", str(file)).strip()
        # one that is in use goes with its last user
        self.undo.callback(run, "losetup", "--detach", found)
        return Path(found)

    def snapshot(self, origin: Path, sectors: int) -> Path:
        """Return a device that has what another has, and can be written to."""
        written = self._work / secrets.token_hex(6)
        with written.open("xb") as changes:
            os.fchmod(changes.fileno(), 0o600)
            # as much as can be written; it takes no room before
            changes.truncate((sectors + _CHUNK_SECTORS) * _SECTOR)
        changed = self.loop(written, read_only=False)
        return self.create(f"0 {sectors} snapshot {origin} {changed} N {_CHUNK_SECTORS}")


def _active_pool(root: DataRoot) -> Path | None:
    """Return the pool that the engine left active, or that somebody named."""
    if root.thin_pool is not None:
        return root.thin_pool
    status = _folder(root).stat()
    major, minor = os.major(status.st_dev), os.minor(status.st_dev)
    found = Path(f"/dev/mapper/docker-{major}:{minor}-{status.st_ino}-pool")
    return found if found.exists() else None


def _made_pool(root: DataRoot, devices: _Devices) -> Path:
    """Return a temporary pool of what the engine's was made of, with discards off."""
    files = [_folder(root) / "devicemapper" / name for name in ("metadata", "data")]
    if not all(file.is_file() for file in files):
        raise RecoveryError(
            "the thin pool is not active and lies in no files: activate its volume group, and "
            "name the pool with --thin-pool"
        )
    with files[0].open("rb") as metadata:
        block = block_sectors(metadata.read(_BLOCK_SIZE_AT + 4))
    metadata_sectors, data_sectors = (file.stat().st_size // _SECTOR for file in files)
    above = [
        devices.snapshot(devices.loop(file, read_only=True), sectors)
        for file, sectors in zip(files, (metadata_sectors, data_sectors), strict=True)
    ]
    return devices.create(
        f"0 {data_sectors} thin-pool {above[0]} {above[1]} {block} 0"
        " 3 read_only ignore_discard skip_block_zeroing"
    )


def _folder(root: DataRoot) -> Path:
    return root.path / "devicemapper"
