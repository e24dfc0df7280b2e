# SPDX-License-Identifier: Apache-2.0
"""The root directory and the volumes of a server with its own user namespace, as idmapped mounts.

The owners on the disk stay as they are without a user namespace. The kernel maps them: a file of
user 0 on the disk belongs to the server's root user, who is an unprivileged user of the host.

The engine mounts an overlay of its own at the root directory before it calls the runtime. This
program mounts the same layers once more, with mapped owners, and puts the new overlay in the place
of the engine's. So the upper directory has one overlay, and the engine's unmount removes it.

The mapped root user cannot search the engine's data root, so runc finds the root directory at
``PLACE`` in a mount namespace of its own. That namespace ends with runc.
"""

import posix
import sys

# The engine waits for this program, and ctypes takes a quarter of its time to import.
from _ctypes import (
    FUNCFLAG_CDECL,
    FUNCFLAG_USE_ERRNO,
    CFuncPtr,
    _SimpleCData,
    dlopen,
    dlsym,
    get_errno,
)

from novadocker.runtime.tree import Fault, read_all

PLACE = "/run/novadocker/root"
"""The root directory in runc's mount namespace."""

DEVICES = "/run/novadocker/devices"
"""The directory of device nodes in runc's mount namespace."""

_LARGEST_LAYERS = 64 << 10
# More than this program opens.
_MOST_DESCRIPTORS = 1024
# mount(2) takes a page of options.
_LONGEST_OPTIONS = 4095
# linux/sched.h
_CLONE_NEWNS = 0x20000
# linux/mount.h
MS_REC = 0x4000
_MS_NOSUID, _MS_NOEXEC, _MS_SLAVE = 2, 8, 0x80000
_MNT_DETACH = 2
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_IDMAP = 0x100000
# linux/fcntl.h
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
# linux/prctl.h, linux/securebits.h
_PR_GET_SECUREBITS, _PR_SET_SECUREBITS = 27, 28
_SECBIT_NO_SETUID_FIXUP = 4
# Because asm-generic/unistd.h numbers newer system calls, the numbers are the same on every
# architecture.
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442


class _Int(_SimpleCData):  # type: ignore[type-arg]  # not subscriptable
    _type_ = "i"


class _Long(_SimpleCData):  # type: ignore[type-arg]  # not subscriptable
    _type_ = "l"


class _Function(CFuncPtr):
    """A function of the C library, which takes numbers of type int, bytes and ``_Long``."""

    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    _restype_ = _Int


_library = dlopen(None, 0)  # type: ignore[arg-type]  # typeshed lacks the program itself
_mount, _unmount, _unshare, _setns, _prctl, _setfsuid, _setfsgid, _syscall = (
    _Function(dlsym(_library, name))
    for name in (
        "mount",
        "umount2",
        "unshare",
        "setns",
        "prctl",
        "setfsuid",
        "setfsgid",
        "syscall",
    )
)


class Layers:
    """The layers of a root directory that the engine has mounted with ``overlay2``.

    :ivar folder: the directory of all layers
    :ivar options: the options of the overlay, relative to that directory
    :raises Fault: the engine has not mounted the root directory so
    """

    def __init__(self, root: str) -> None:
        above, _, last = root.rpartition("/")
        self.folder, _, name = above.rpartition("/")
        if last != "merged" or not self.folder.endswith("/overlay2"):
            raise Fault(
                "a user namespace for each server needs the engine's storage driver overlay2"
            )
        with open(f"{above}/lower", "rb", buffering=0) as source:
            lower = read_all(source.fileno(), _LARGEST_LAYERS)
        if lower is None:
            raise Fault("the list of the image's layers is too large")
        self.options = (
            f"index=off,lowerdir={lower.decode()},upperdir={name}/diff,workdir={name}/work"
        )
        if len(self.options) > _LONGEST_OPTIONS:
            raise Fault("the image has too many layers")


def enter(layers: Layers, root: str, volumes: list[str], user_namespace: str, first: int) -> None:
    """Mount the root directory and volumes with mapped owners, in a new mount namespace.

    The calling process is in the new mount namespace afterwards. In the host's, the overlay at
    ``root`` is the new one.

    :param layers: the layers of the root directory
    :param root: the root directory that the engine has mounted
    :param volumes: directories and files of the host that only this server uses
    :param user_namespace: path of the server's user namespace
    :param first: user and group on the host that are root in the server
    :raises Fault: the kernel or a file system has no idmapped mounts
    """
    here = posix.getcwd()
    make_places()
    user = posix.open(user_namespace, posix.O_RDONLY | posix.O_CLOEXEC)
    host = _open_namespace()
    # A second overlay on top of the engine's would leave that one mounted after the engine's
    # unmount, and a copy of it in the new mount namespace would end only with that.
    former = posix.open(root, posix.O_PATH | posix.O_CLOEXEC)
    unmount(root)
    leave_host()
    own = _open_namespace()
    # Overlays of volumes may have absolute paths of layers.
    attach(clone_mapped(layers.folder, user), layers.folder)
    posix.chdir(layers.folder)
    map_volumes(volumes, user, first)
    mount_overlay(PLACE, layers.options, first)
    overlay = clone(PLACE)
    setns(host)
    attach(overlay, root)
    setns(own)
    posix.chdir(here)
    for descriptor in (user, host, own, overlay):
        posix.close(descriptor)
    _close_apart(former)


def _close_apart(descriptor: int) -> None:
    """Close a file descriptor in a process of its own, for which this one does not wait.

    With the last descriptor of an unmounted overlay, the kernel writes back the whole file system
    of its upper directory (ovl_sync_fs in fs/overlayfs/super.c). That takes longer than all else
    here.
    """
    closed, end = posix.pipe()
    if posix.fork() == 0:
        # No other file of this process stays open; the engine waits for the end of its output.
        posix.dup2(descriptor, 1)
        posix.dup2(closed, 0)
        posix.closerange(2, _MOST_DESCRIPTORS)
        posix.read(0, 1)
        posix._exit(0)
    posix.close(descriptor)
    posix.close(closed)
    posix.close(end)


def make_places() -> None:
    """Create the directories for mounts of this program. Idempotent."""
    for folder in (PLACE, DEVICES):
        try:  # noqa: SIM105
            posix.mkdir(folder, 0o755)
        except FileExistsError:
            pass


def leave_host() -> None:
    """Move this process to a new mount namespace, from which no mount gets to the host's."""
    unshare(_CLONE_NEWNS)
    mount("none", "/", "", _MS_SLAVE | MS_REC, "")


def map_volumes(volumes: list[str], user: int, first: int) -> None:
    """Map the owners of volumes in this process's mount namespace.

    :param volumes: as for ``enter``
    :param user: file descriptor of a user namespace
    :param first: as for ``enter``
    """
    overlays = _overlays() if volumes else {}
    for volume in volumes:
        if volume in overlays:
            mount_overlay(volume, overlays[volume], first)
        else:
            attach(clone_mapped(volume, user), volume)


def _overlays() -> dict[str, str]:
    """Return the options of mounted overlays by their mount points; see proc_pid_mountinfo(5)."""
    found = {}
    with open("/proc/self/mountinfo", "rb") as source:
        for line in source:
            fields, _, more = line.rstrip(b"\n").partition(b" - ")
            kind, _, options = more.split(b" ", 2)
            if kind == b"overlay":
                found[_unescaped(fields.split(b" ")[4])] = ",".join(
                    option
                    for option in _unescaped(options).split(",")
                    if option.partition("=")[0] in ("lowerdir", "upperdir", "workdir", "index")
                )
    return found


def _unescaped(text: bytes) -> str:
    parts = text.split(b"\\")
    return (parts[0] + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in parts[1:])).decode(
        errors="surrogateescape"
    )


def make_node(number: int, mode: int, device: int, owner: list[int]) -> str:
    """Create a device node in the process's own mount namespace; return its path.

    :param number: number of the device among those of the container
    :param owner: user and group on the host
    """
    if number == 0:
        mount("devices", DEVICES, "tmpfs", _MS_NOEXEC | _MS_NOSUID, "mode=711,size=64k")
    path = f"{DEVICES}/{number}"
    posix.mknod(path, mode, device)
    posix.chown(path, *owner)
    posix.chmod(path, mode & 0o777)
    return path


def _open_namespace() -> int:
    return posix.open("/proc/self/ns/mnt", posix.O_RDONLY | posix.O_CLOEXEC)


def mount_overlay(place: str, options: str, first: int) -> None:
    """Mount an overlay whose work directory the kernel creates as a mapped root user.

    :param options: paths in these lead through an idmapped mount
    :param first: user and group on the host that the mount maps to 0
    """
    unused = [_Long(0)] * 3
    kept = _prctl(_PR_GET_SECUREBITS, _Long(0), *unused)
    # A change of the user would remove the capabilities that overlayfs keeps for later.
    own = _Long(kept | _SECBIT_NO_SETUID_FIXUP)
    _check(_prctl(_PR_SET_SECUREBITS, own, *unused), "securebits")
    set_file_ids(first)
    try:
        mount("overlay", place, "overlay", 0, options)
    finally:
        set_file_ids(0)
        _check(_prctl(_PR_SET_SECUREBITS, _Long(kept), *unused), "securebits")


def set_file_ids(id_: int) -> None:
    """Access files as another user and group; see setfsuid(2)."""
    _setfsgid(id_)
    _setfsuid(id_)


def clone_mapped(path: str, user: int) -> int:
    """Return a file descriptor of an idmapped copy of the mount at ``path``.

    :param user: file descriptor of a user namespace
    :raises Fault: the kernel or the file system has no idmapped mounts
    """
    tree = clone(path)
    # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
    attributes = b"".join(
        number.to_bytes(8, sys.byteorder) for number in (_MOUNT_ATTR_IDMAP, 0, 0, user)
    )
    try:
        _call(path, _SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, attributes, len(attributes))
    except OSError as error:
        raise Fault(
            f"the kernel or the file system of {path} has no idmapped mounts: {error.strerror}"
        ) from error
    return tree


def clone(path: str) -> int:
    """Return a file descriptor of a detached copy of the mount at ``path``; see open_tree(2)."""
    flags = _OPEN_TREE_CLONE | posix.O_CLOEXEC
    return _call(path, _SYS_OPEN_TREE, _AT_FDCWD, _encode(path), flags)


def attach(mount_descriptor: int, path: str) -> None:
    """Attach a detached mount at ``path``; see move_mount(2)."""
    place, flags = _encode(path), _MOVE_MOUNT_F_EMPTY_PATH
    _call(path, _SYS_MOVE_MOUNT, mount_descriptor, b"", _AT_FDCWD, place, flags)


def mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    """Mount a file system; see mount(2)."""
    texts = (_encode(text) for text in (source, target, kind))
    _check(_mount(*texts, _Long(flags), _encode(options)), target)


def unmount(path: str) -> None:
    """Detach the topmost mount at ``path``."""
    _check(_unmount(_encode(path), _MNT_DETACH), path)


def unshare(kinds: int) -> None:
    """Move this process to new namespaces; see unshare(2)."""
    _check(_unshare(kinds), "unshare")


def setns(descriptor: int) -> None:
    """Move this process to the namespace of a file descriptor; see setns(2)."""
    _check(_setns(descriptor, 0), "setns")


def _encode(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def _call(subject: str, number: int, *arguments: int | bytes) -> int:
    """Call a system call that the C library has no function for."""
    result: int = _syscall(
        _Long(number),
        *(_Long(value) if isinstance(value, int) else value for value in arguments),
    )
    _check(result, subject)
    return result


def _check(result: int, subject: str) -> None:
    if result < 0:
        error = get_errno()
        raise OSError(error, posix.strerror(error), subject)
