# SPDX-License-Identifier: Apache-2.0
"""Reading the devices of the storage driver devicemapper through temporary devices.

A container's file system is a thin device of the engine's pool. If the pool is not active, a
temporary pool is created from the files in which the engine kept it. All writes of the kernel, such
as the replay of a journal, go to snapshots in temporary files and never to the original. The
temporary devices are removed with their last mount. (The kernel's thin-provisioning.rst and
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
# The chunk size of a snapshot: 4 KiB.
_CHUNK_SECTORS = 8
# These are from struct thin_disk_superblock in the kernel's dm-thin-metadata.c.
_MAGIC, _MAGIC_AT, _BLOCK_SIZE_AT = 27022010, 32, 336
# nouuid, because all devices are snapshots of one XFS and have its UUID.
_MOUNT_OPTIONS = {"ext4": "ro,nosuid,nodev", "xfs": "ro,nosuid,nodev,nouuid"}
# The engine numbers devices upwards; up to this many newer ones may have lost their record.
_NEWER = 64
# The number of a thin device has 24 bits.
_NUMBERS = range(1 << 24)


@dataclass(frozen=True)
class ThinDevice:
    """A thin device as the engine recorded it."""

    number: int
    sectors: int


def read_device(root: DataRoot, layer: str) -> ThinDevice:
    """Return the thin device of a layer.

    :raises RecoveryError: the record of the device is missing or damaged
    """
    path = _folder(root) / "metadata" / layer
    stored = read_json(path)
    number, size = stored.get("device_id"), stored.get("size")
    if not isinstance(number, int) or number not in _NUMBERS:
        raise RecoveryError(f"{path} is damaged: it has no device number")
    if not isinstance(size, int) or size <= 0:
        raise RecoveryError(f"{path} is damaged: it has no size")
    return ThinDevice(number, size // _SECTOR)


def unnamed_devices(root: DataRoot) -> Iterator[ThinDevice]:
    """Yield all devices without a record that may exist.

    :raises RecoveryError: the records of all devices are damaged
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
    # The size of these devices is unknown. The largest one serves for all, because reads behind the
    # end of a device return zeros.
    sectors = max(device.sectors for device in known)
    for number in range(max(numbers) + _NEWER):
        if number not in numbers:
            yield ThinDevice(number, sectors)


def block_sectors(superblock: bytes) -> int:
    """Return the block size of a pool. Pure.

    :param superblock: start of the pool's metadata
    :raises RecoveryError: the metadata is truncated or damaged
    """
    if len(superblock) < _BLOCK_SIZE_AT + 4:
        raise RecoveryError("the metadata of the thin pool is truncated")
    (magic,) = struct.unpack_from("<Q", superblock, _MAGIC_AT)
    (sectors,) = struct.unpack_from("<I", superblock, _BLOCK_SIZE_AT)
    if magic != _MAGIC or sectors == 0:
        raise RecoveryError("the metadata of the thin pool is damaged")
    return int(sectors)


@contextmanager
def opened(root: DataRoot, layer: str) -> Iterator[FileSystem]:
    """Mount a layer's file system in a temporary directory while the body runs.

    Bind mounts and overlays of it that the body creates outlive the body.

    :raises RecoveryError: the device is not found, or the kernel refuses to mount it
    """
    with ExitStack() as undo:
        work = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="novadocker-thin-")))
        devices = _Devices(work, undo)
        # After sync(2), data that running servers wrote is on their devices.
        os.sync()
        pool = _active_pool(root) or _made_pool(root, devices)
        found = list(_mounted(_candidates(root, layer), pool, work, undo))
        if len(found) != 1:
            raise RecoveryError(
                f"the record of layer {layer} is damaged, and {len(found)} devices of the thin "
                "pool may be its device"
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
    """Mount the candidates that exist, and yield where. If there is only one, it must exist."""
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

    :raises RecoveryError: the device does not exist, or its file system is not of the engine's
    """
    table = f"0 {device.sectors} thin {pool} {device.number}"
    top = devices.snapshot(devices.create(table, read_only=True), device.sectors)
    kind = run("blkid", "-p", "-s", "TYPE", "-o", "value", str(top)).strip()
    if kind not in _MOUNT_OPTIONS:
        raise RecoveryError(
            f"device {device.number} of the thin pool has no file system ext4 or xfs"
        )
    target.mkdir()
    run("mount", "-t", kind, "-o", _MOUNT_OPTIONS[kind], str(top), str(target))
    devices.undo.callback(run, "umount", str(target))


class _Devices:
    """The temporary devices; ``undo`` removes each one as soon as it is no longer in use."""

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
        # The kernel detaches a loop device that is in use when its last user closes it.
        self.undo.callback(run, "losetup", "--detach", found)
        return Path(found)

    def snapshot(self, origin: Path, sectors: int) -> Path:
        """Create a writable snapshot of a device."""
        written = self._work / secrets.token_hex(6)
        with written.open("xb") as changes:
            os.fchmod(changes.fileno(), 0o600)
            # The size is the most that can be written. The file is sparse, so it takes no space.
            changes.truncate((sectors + _CHUNK_SECTORS) * _SECTOR)
        changed = self.loop(written, read_only=False)
        return self.create(f"0 {sectors} snapshot {origin} {changed} N {_CHUNK_SECTORS}")


def _active_pool(root: DataRoot) -> Path | None:
    """Return the active pool that the user named or the engine left; None if there is none."""
    if root.thin_pool is not None:
        return root.thin_pool
    status = _folder(root).stat()
    major, minor = os.major(status.st_dev), os.minor(status.st_dev)
    found = Path(f"/dev/mapper/docker-{major}:{minor}-{status.st_ino}-pool")
    return found if found.exists() else None


def _made_pool(root: DataRoot, devices: _Devices) -> Path:
    """Create a temporary pool from the files of the engine's pool, with discards off."""
    files = [_folder(root) / "devicemapper" / name for name in ("metadata", "data")]
    if not all(file.is_file() for file in files):
        raise RecoveryError(
            "the thin pool is neither active nor in files of the data root: activate its volume "
            "group, and name the pool with --thin-pool"
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
