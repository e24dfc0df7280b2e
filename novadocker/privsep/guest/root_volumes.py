# SPDX-License-Identifier: Apache-2.0
"""Privileged functions for volumes whose ext4 file system is the root directory of an instance.

The runtime shim mounts the file system in the mount namespace of the container. The functions here
run while the container does not. They mount it in a namespace of the calling thread, which the
kernel deletes with the thread, so that no mount is left if the process dies.

A volume that the driver fills has a mark in its last block from before the file system is made
until it is complete. So a fill that was cut off is known, and no other content is ever replaced.
The UUID of the complete file system is the id of the image.
"""

import errno
import hashlib
import os
import re
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from novadocker import privsep
from novadocker.linux import ext4, libc, namespaces
from novadocker.linux.ext4 import Superblock
from novadocker.privsep import arguments
from novadocker.privsep.guest import volume_devices, volumes
from novadocker.privsep.guest.volume_devices import VolumeDevice
from novadocker.privsep.storage import callers
from novadocker.runtime import record as records

FILLED = "filled"
"""The driver has filled the volume with the files of the image."""

UNFINISHED = "unfinished"
"""A fill of the driver was cut off."""

IMAGE = "image"
"""The volume begins with the image's bytes, as Cinder has written them."""

FILE_SYSTEM = "file system"
BLANK = "blank"
FOREIGN = "foreign"
"""The volume has something else on it."""

_FILLING_LABEL, _FILLED_LABEL = b"nova-filling", b"nova-root"
_MARK = b"novadocker is filling this volume\n".ljust(4096, b"\0")
# The end of the device that the file system leaves to the mark.
_TAIL = 64 << 10
_BLOCK = 4096
_LEAST = 64 << 20
# Without the tables that the kernel can write later, a large volume does not take minutes.
_MAKE = ("-q", "-F", "-b", str(_BLOCK), "-m", "0", "-E", "lazy_itable_init=1")
_AS_IT_WAS = (
    "--numeric-owner",
    "--same-owner",
    "--preserve-permissions",
    "--xattrs",
    "--xattrs-include=*",
)
# A file system, a table of partitions, and a data base have something here.
_BLANK_BYTES = 16 << 20
_CHUNK = 1 << 20
# gzip, xz, zstd and bzip2
_COMPRESSED = (b"\x1f\x8b", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"BZh")
_MD5 = re.compile(r"[0-9a-f]{32}|")
_LENGTHS = range(1 << 63)
_PLACE = "/run/novadocker/root"
# Less than the context's bound for a call.
_SECONDS = 3300
# Nova cuts a fault to 255 characters.
_LONGEST = 160
# The exit status of e2fsck(8) if it has corrected errors.
_CORRECTED = 1


def boots_from_volume(instance_uuid: str) -> bool:
    """Return True if it is recorded that an instance boots from a volume. Needs no privilege.

    :raises ValueError: the argument is malformed
    """
    return volume_devices.root_of(arguments.instance_uuid(instance_uuid)) is not None


@privsep.transfer_pctxt.entrypoint
def examine(
    instance_uuid: str, image_id: str | None, checksum: str, length: int
) -> tuple[str, int]:
    """Return what is on the volume that an instance boots from, and the volume's size in bytes.

    :param image_id: of the image whose files belong on the volume; None without one
    :param checksum: MD5 of the image in hex digits; may be empty
    :param length: of the image in bytes
    :returns: one of the constants above
    :raises ValueError: an argument is malformed, or the instance boots from no volume
    :raises OSError: the volume is mounted, or cannot be read
    """
    image = None if image_id is None else arguments.instance_uuid(image_id)
    wanted, most = arguments.text(_MD5, checksum), arguments.number(_LENGTHS, length)
    with _opened(_held(instance_uuid), os.O_RDONLY) as device:
        return _content(device, image, wanted, most), _size(device)


@privsep.transfer_pctxt.entrypoint
def fill(instance_uuid: str, image_id: str, pipe: tuple[int, int]) -> None:
    """Make a file system on the volume that an instance boots from, and unpack an archive in it.

    Replaces what is on the volume, which the caller has examined. The mark stays until
    ``complete``, because an archive that is cut off between two files looks whole to tar, for
    example if the caller dies.

    :param image_id: of the image whose files are in the archive
    :param pipe: process id and file descriptor of the end of a pipe that yields a tar archive
    :raises ValueError: an argument is malformed, or the instance boots from no volume
    :raises OSError: the volume is mounted, too small, or cannot be written; the mark stays
    """
    image, target = arguments.instance_uuid(image_id), arguments.open_file(pipe)
    held = _held(instance_uuid)
    with callers.pipe(target, os.O_RDONLY) as archive, _opened(held, os.O_RDWR) as device:
        size = _size(device)
        if size < _LEAST:
            raise OSError(errno.ENOSPC, "the volume is too small for a file system")
        _write_tail(device, _MARK)
        blocks = str((size - _TAIL) // _BLOCK)
        named = ("-L", _FILLING_LABEL.decode(), "-U", image)
        _run("mkfs.ext4", *_MAKE, *named, held.source, blocks)
        namespaces.run_in_thread(_unpack, held.source, archive)


@privsep.transfer_pctxt.entrypoint
def complete(instance_uuid: str, image_id: str) -> None:
    """Remove the mark from a volume, after ``fill`` has unpacked the whole archive. Idempotent.

    :raises ValueError: an argument is malformed, or the instance boots from no volume
    :raises OSError: the volume is mounted, has no file system of this image, or cannot be written
    """
    image, held = arguments.instance_uuid(image_id), _held(instance_uuid)
    with _opened(held, os.O_RDWR) as device:
        found = _superblock(device)
        labels = (_FILLING_LABEL, _FILLED_LABEL)
        if found is None or found.label not in labels or found.uuid != image:
            raise OSError(errno.EINVAL, "the volume does not have the files of the image")
        _run("e2label", held.source, _FILLED_LABEL.decode())
        os.fsync(device)
        _write_tail(device, bytes(len(_MARK)))


@privsep.transfer_pctxt.entrypoint
def prepare(instance_uuid: str) -> None:
    """Check the file system that an instance boots from, and make it as large as the volume.

    Does nothing if the instance boots from no volume, or has the file system mounted.

    :raises ValueError: the argument is malformed
    :raises OSError: the file system is damaged or of another kind, or the volume cannot be read
    """
    held = volume_devices.root_of(arguments.instance_uuid(instance_uuid))
    if held is None or volumes.is_claimed(held.source):
        return
    with _opened(held, os.O_RDONLY) as device:
        found, size = _superblock(device), _size(device)
    if found is None:
        raise OSError(errno.EINVAL, "the volume has no ext4 file system")
    if found.label == _FILLING_LABEL:
        raise OSError(errno.EINVAL, "the volume's file system is not complete")
    if found.external_journal:
        raise OSError(errno.EINVAL, "the journal of the volume's file system is on another device")
    blocks = (size - _TAIL) // found.block_size
    grows = found.size // found.block_size < blocks
    # resize2fs demands a check of the whole file system.
    _run("e2fsck", *(["-f"] if grows else []), "-p", held.source, most=_CORRECTED)
    if grows:
        _run("resize2fs", held.source, str(blocks))


def _held(instance_uuid: str) -> VolumeDevice:
    """Return the volume that an instance boots from."""
    found = volume_devices.root_of(arguments.instance_uuid(instance_uuid))
    if found is None:
        raise ValueError("the instance boots from no volume")
    return found


@contextmanager
def _opened(held: VolumeDevice, access: int) -> Iterator[int]:
    """Open the device of a volume that is not mounted."""
    if volumes.is_claimed(held.source):
        raise OSError(errno.EBUSY, "the volume is mounted", held.source)
    device = os.open(held.source, access | os.O_CLOEXEC)
    try:
        found = os.fstat(device)
        if not stat.S_ISBLK(found.st_mode) or found.st_rdev != held.number:
            raise OSError(errno.ENXIO, "the volume is not connected any more", held.source)
        yield device
    finally:
        os.close(device)


def _size(device: int) -> int:
    return os.lseek(device, 0, os.SEEK_END)


def _content(device: int, image_id: str | None, checksum: str, length: int) -> str:
    """Return what is on a device; the parameters are those of ``examine``."""
    found = _superblock(device)
    if found is not None and found.label == _FILLED_LABEL:
        return FILLED if found.uuid == image_id else FILE_SYSTEM
    if found is not None and found.label == _FILLING_LABEL:
        return UNFINISHED
    begins_archive = _is_archive(os.pread(device, _BLOCK, 0))
    if found is not None and not begins_archive:
        # Also with a mark, which a crash leaves after the fill if it comes before the removal.
        return FILE_SYSTEM
    if os.pread(device, len(_MARK), _size(device) - len(_MARK)) == _MARK:
        return UNFINISHED
    if begins_archive:
        return IMAGE if _begins_with(device, checksum, length) else FOREIGN
    return BLANK if _is_blank(device) else FOREIGN


def _superblock(device: int) -> Superblock | None:
    return ext4.parse(os.pread(device, ext4.SIZE, ext4.OFFSET))


def _is_archive(begin: bytes) -> bool:
    """Return True if a device begins with a tar archive, which may be compressed."""
    return begin[257:262] == b"ustar" or begin.startswith(_COMPRESSED)


def _begins_with(device: int, checksum: str, length: int) -> bool:
    """Return True if the first bytes of a device have a checksum."""
    digest = hashlib.md5(usedforsecurity=False)
    if not checksum or length > _size(device):
        return False
    for begin in range(0, length, _CHUNK):
        digest.update(os.pread(device, min(_CHUNK, length - begin), begin))
    return digest.hexdigest() == checksum


def _is_blank(device: int) -> bool:
    """Return True if the begin and the end of a device are zeros."""
    size = _size(device)
    parts = {0, max(0, size - _BLANK_BYTES)}
    return not any(
        os.pread(device, _CHUNK, place).strip(b"\0")
        for begin in parts
        for place in range(begin, min(size, begin + _BLANK_BYTES), _CHUNK)
    )


def _write_tail(device: int, content: bytes) -> None:
    """Write the last bytes of a device, and wait until they are on the disk."""
    os.pwrite(device, content, _size(device) - len(content))
    os.fsync(device)


def _unpack(source: str, archive: int) -> None:
    """Unpack a tar archive in the file system of a device. The calling thread ends afterwards."""
    with suppress(FileExistsError):
        os.mkdir(_PLACE, 0o755)
    libc.unshare(libc.CLONE_FS | libc.CLONE_NEWNS)
    libc.mount("", "/", libc.MS_SLAVE | libc.MS_REC)
    flags = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC
    libc.mount_file_system(records.ROOT_KIND, source, _PLACE, flags, records.ROOT_OPTIONS)
    _run("tar", "--extract", "--file=-", f"--directory={_PLACE}", *_AS_IT_WAS, stdin=archive)
    # In this namespace nothing else uses it, so the data is on the device afterwards.
    libc.umount(_PLACE, 0)


def _run(*command: str, stdin: int = subprocess.DEVNULL, most: int = 0) -> None:
    """Run a program.

    :param most: the highest exit status that is no failure
    :raises OSError: it fails; the message has the begin of its output
    """
    with subprocess.Popen(
        command,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "LC_ALL": "C"},
    ) as process:
        assert process.stdout is not None
        bound = threading.Timer(_SECONDS, process.kill)
        bound.start()
        try:
            said = process.stdout.read(_LONGEST).decode(errors="replace")
            # A line for each file of an image would need much memory.
            while process.stdout.read(_CHUNK):
                pass
            status = process.wait()
        finally:
            bound.cancel()
    if not 0 <= status <= most:
        shown = "; ".join(said.split("\n"))
        raise OSError(errno.EIO, f"{command[0]} failed ({status}): {shown}")
