# SPDX-License-Identifier: Apache-2.0
"""System calls that Python 3.11 has no function for, as typed functions on the C library.

Each function raises OSError with the kernel's error number and the path, or else the name of the
system call.
"""

import ctypes
import errno
import os
import struct

# linux/sched.h
CLONE_FS = 0x200
CLONE_NEWNS = 0x20000
CLONE_NEWNET = 0x40000000
# linux/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_REMOUNT = 32
MS_NOEXEC = 8
MS_BIND = 4096
MS_REC = 16384
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
# linux/fs.h
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
# linux/fcntl.h
_AT_FDCWD = -100
_AT_STATX_DONT_SYNC = 0x4000
# linux/stat.h: STATX_TYPE, struct statx with stx_mode, stx_rdev_major and stx_rdev_minor
_STATX_TYPE = 1
_STATX = struct.Struct("=28xH98x2I120x")
# linux/openat2.h
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_UNCHANGED = 0xFFFFFFFF

# linux/falloc.h
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2

# Because asm-generic/unistd.h numbers newer system calls, the numbers are the same on every
# architecture. glibc 2.36 has functions for the two mount calls, and an older glibc for no call.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_OPENAT2 = 437
_SYS_PIDFD_GETFD = 438
# This one is older.
_SYS_BPF = {"x86_64": 321, "ppc64le": 361, "s390x": 351}.get(os.uname().machine, 280)

_library = ctypes.CDLL(None, use_errno=True)
_library.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]
_library.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_library.setns.argtypes = [ctypes.c_int, ctypes.c_int]
_library.unshare.argtypes = [ctypes.c_int]
_library.setfsuid.argtypes = _library.setfsgid.argtypes = [ctypes.c_uint]
_library.setfsuid.restype = _library.setfsgid.restype = ctypes.c_uint
_library.syncfs.argtypes = [ctypes.c_int]
_library.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
_library.statx.argtypes = [
    *(ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint),
    ctypes.c_char_p,
]
_library.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def setns(descriptor: int, kind: int) -> None:
    """Move the calling thread to the namespace of a file descriptor; see setns(2).

    :param kind: the namespace's CLONE_NEW constant
    """
    _check(_library.setns(descriptor, kind), "setns")


def unshare(kinds: int) -> None:
    """Move the calling thread to new namespaces, or give it own attributes; see unshare(2)."""
    _check(_library.unshare(kinds), "unshare")


def set_file_ids(uid: int, gid: int) -> None:
    """Set the calling thread's user and group for access to files; see setfsuid(2).

    With another user than root, the kernel takes the thread's capabilities over files.

    :raises OSError: the kernel refuses
    """
    _library.setfsgid(gid)
    _library.setfsuid(uid)
    # Both return the earlier id, whether they succeed or not. The id -1 changes nothing.
    found = _library.setfsuid(_UNCHANGED), _library.setfsgid(_UNCHANGED)
    if found != (uid, gid):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), "setfsuid")


def cached_type(path: str) -> tuple[int, int]:
    """Return the mode and the device number of a file, as the kernel knows them; see statx(2).

    Does not wait for the program or the server that a file system comes from.
    """
    status = ctypes.create_string_buffer(_STATX.size)
    result = _library.statx(_AT_FDCWD, os.fsencode(path), _AT_STATX_DONT_SYNC, _STATX_TYPE, status)
    _check(result, path)
    mode, major, minor = _STATX.unpack(status.raw)
    return mode, os.makedev(major, minor)


def syncfs(descriptor: int) -> None:
    """Write the file system of an open file to its disk; see syncfs(2)."""
    _check(_library.syncfs(descriptor), "syncfs")


def punch_hole(descriptor: int, offset: int, size: int) -> None:
    """Replace bytes of a file by a hole and keep the file's size; see fallocate(2)."""
    mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    _check(_library.fallocate(descriptor, mode, offset, size), "fallocate")


def mount(source: str, target: str, flags: int) -> None:
    """Bind, share or remount a mount, according to ``flags``; see mount(2).

    These operations need neither a file system type nor options.
    """
    _check(_library.mount(os.fsencode(source), os.fsencode(target), None, flags, None), target)


def mount_tmpfs(target: str, flags: int, options: str) -> None:
    """Mount a new tmpfs; see tmpfs(5)."""
    mount_file_system("tmpfs", "tmpfs", target, flags, options)


def mount_file_system(kind: str, source: str, target: str, flags: int, options: str) -> None:
    """Mount a file system; see mount(2)."""
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode(), flags, options.encode())
    _check(_library.mount(*arguments), target)


def umount(target: str, flags: int) -> None:
    """Unmount a file system; see umount2(2)."""
    _check(_library.umount2(os.fsencode(target), flags), target)


def clone_mount(path: str) -> int:
    """Return a file descriptor of a detached copy of the mount at ``path``; see open_tree(2)."""
    return _call(
        path,
        _SYS_OPEN_TREE,
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC),
    )


def attach_mount(tree: int, path: str) -> None:
    """Attach a mount of ``clone_mount`` at ``path``; see move_mount(2)."""
    _call(
        path,
        _SYS_MOVE_MOUNT,
        ctypes.c_int(tree),
        ctypes.c_char_p(b""),
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
    )


def openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    """Return a file descriptor of an existing file; see openat2(2).

    :param directory: a file descriptor of the directory that ``path`` starts from
    :param resolve: how the kernel resolves ``path``, as ``RESOLVE_IN_ROOT``
    """
    how = _OpenHow(flags, 0, resolve)
    return _call(
        path,
        _SYS_OPENAT2,
        ctypes.c_int(directory),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )


def pidfd_getfd(process: int, descriptor: int) -> int:
    """Return a duplicate of another process's file descriptor; see pidfd_getfd(2).

    :param process: pidfd of the process
    """
    return _call(
        "pidfd_getfd",
        _SYS_PIDFD_GETFD,
        ctypes.c_int(process),
        ctypes.c_int(descriptor),
        ctypes.c_uint(0),
    )


def bpf(command: int, attributes: bytearray) -> int:
    """Call bpf(2) and return its result.

    :param attributes: the command's part of ``union bpf_attr``, which the kernel may change
    """
    buffer = (ctypes.c_char * len(attributes)).from_buffer(attributes)
    return _call("bpf", _SYS_BPF, ctypes.c_int(command), buffer, ctypes.c_uint(len(attributes)))


def _call(subject: str, number: int, *arguments: object) -> int:
    result: int = _library.syscall(ctypes.c_long(number), *arguments)
    _check(result, subject)
    return result


def _check(result: int, subject: str) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), subject)
