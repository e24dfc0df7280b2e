# SPDX-License-Identifier: Apache-2.0
"""Loop devices, by the requests of linux/loop.h.

losetup(8) cannot be used, because it takes the backing file by its path and gives the device the
path as its name, which everybody who can open the device can read.
"""

import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

_CONTROL = "/dev/loop-control"
# linux/loop.h
_LOOP_CLR_FD = 0x4C01
_LOOP_SET_STATUS64 = 0x4C04
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CTL_GET_FREE = 0x4C82
_LO_FLAGS_READ_ONLY = 1
_LO_FLAGS_AUTOCLEAR = 4
# struct loop_info64: lo_device, lo_inode, lo_rdevice, lo_offset, lo_sizelimit, lo_number,
# lo_encrypt_type, lo_encrypt_key_size, lo_flags, lo_file_name, lo_crypt_name, lo_encrypt_key,
# lo_init.
_INFO = struct.Struct("=5Q4I64s64s32s2Q")
_RDEVICE, _FLAGS, _NAME = 2, 8, 9
# struct loop_config: fd, block_size, info, __reserved.
_CONFIG = struct.Struct(f"=2I{_INFO.size}s64x")
# Other programs attach devices, too, and one of them may be quicker each time.
_ATTEMPTS = 100


@dataclass(frozen=True)
class Status:
    """The name of an attached loop device, and the device number of its backing file if it has one.

    The kernel keeps 63 characters of the name.
    """

    name: str
    backing_device: int


def attach(backing: int, name: str, size_limit: int = 0) -> tuple[Path, int]:
    """Attach an open file to a free loop device, which is read-only.

    The kernel detaches the device when its last file descriptor is closed.

    :param backing: file descriptor of the backing file, which may be a loop device itself
    :param name: at most 63 ASCII characters
    :param size_limit: the size of the device in bytes; 0 means the size of the file
    :returns: the path of the device, and a file descriptor of the device
    :raises OSError: no device is free, or the kernel refuses
    """
    flags = _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR
    named = name.encode("ascii")
    info = _INFO.pack(0, 0, 0, 0, size_limit, 0, 0, 0, flags, named, b"", b"", 0, 0)
    config = _CONFIG.pack(backing, 0, info)
    for _ in range(_ATTEMPTS):
        path = _free()
        device = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(device, _LOOP_CONFIGURE, config)
        except OSError as error:
            os.close(device)
            if error.errno != errno.EBUSY:
                raise
        else:
            return path, device
    raise OSError(errno.EBUSY, "no loop device is free", _CONTROL)


def keep(device: int) -> None:
    """Keep a device of ``attach`` attached when its last file descriptor is closed."""
    info = list(_INFO.unpack(_read_info(device)))
    info[_FLAGS] &= ~_LO_FLAGS_AUTOCLEAR
    fcntl.ioctl(device, _LOOP_SET_STATUS64, _INFO.pack(*info))


def detach(device: int) -> None:
    """Detach a loop device when its last file descriptor is closed."""
    fcntl.ioctl(device, _LOOP_CLR_FD)


def status(device: int) -> Status | None:
    """Return the status of a loop device; None if no file is attached to it."""
    try:
        info = _INFO.unpack(_read_info(device))
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise
    return Status(info[_NAME].rstrip(b"\0").decode("utf-8", "replace"), info[_RDEVICE])


def _read_info(device: int) -> bytes:
    return fcntl.ioctl(device, _LOOP_GET_STATUS64, bytes(_INFO.size))


def _free() -> Path:
    """Return the path of a loop device that was free a moment ago. The kernel creates one."""
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        return Path(f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}")
    finally:
        os.close(control)
