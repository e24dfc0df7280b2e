# SPDX-License-Identifier: Apache-2.0
"""The program that tries whether servers of this host can have a user namespace of their own.

It makes the mounts of ``idmapped`` for an empty directory, in a mount namespace that ends with it,
and those of /proc and /sys that the OCI runtime makes.
"""

import errno
import posix
import sys

from novadocker.runtime import idmapped
from novadocker.runtime.record import IDS_OF_SERVER
from novadocker.runtime.tree import Fault

_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_CLONE_NEWPID, _CLONE_NEWNET = 0x20000000, 0x40000000
_MS_PRIVATE = 1 << 18
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 1, 2, 4, 8
_NOTHING = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
# The file systems of the kernel with the flags of Docker's configuration. A user namespace may
# mount them only if nothing covers a part of the host's own mount (mount_too_revealing).
_KERNEL_MOUNTS = (("proc", "/proc", _NOTHING), ("sysfs", "/sys", _NOTHING | _MS_RDONLY))
# Any range without the host's users.
_FIRST = 28672 * IDS_OF_SERVER
_OWNER = 5
_MOUNTED = "mounted"
# What the kernel answers to a call that it or the file system does not support or permit. Another
# error, such as a full disk, says nothing about them.
_REFUSALS = frozenset(
    (
        errno.EACCES,
        errno.EINVAL,
        errno.ENODEV,
        errno.ENOSYS,
        errno.EOPNOTSUPP,
        errno.EOVERFLOW,
        errno.EPERM,
    )
)


def probe(folder: str) -> None:
    """Mount an overlay of mapped layers, and write to it as the mapped root user.

    :param folder: an empty directory on the file system of the engine's layers
    :raises Fault: the kernel or the file system cannot do so
    """
    for name in ("lower", "upper", "work", "merged"):
        posix.mkdir(f"{folder}/{name}", 0o755)
    _create(f"{folder}/lower/file")
    posix.chown(f"{folder}/lower/file", _OWNER, _OWNER)
    user = _new_user_namespace()
    idmapped.unshare(_CLONE_NEWNS)
    idmapped.mount("none", "/", "", idmapped.MS_REC | _MS_PRIVATE, "")
    idmapped.attach(idmapped.clone_mapped(folder, user), folder)
    posix.chdir(folder)
    try:
        idmapped.mount_overlay(
            "merged", "index=off,lowerdir=lower,upperdir=upper,workdir=work", _FIRST
        )
        idmapped.set_file_ids(_FIRST)
        _create("merged/new")
        idmapped.set_file_ids(0)
    except OSError as error:
        raise Fault(f"the kernel mounts no overlay of mapped layers: {error.strerror}") from error
    if posix.stat("merged/file").st_uid != _FIRST + _OWNER:
        raise Fault("the kernel does not map the owners of an overlay's layers")


def _new_user_namespace() -> int:
    """Return a file descriptor of a new user namespace, which can show the kernel's files."""
    ready, made = posix.pipe()
    done, end = posix.pipe()
    child = posix.fork()
    if child == 0:
        posix.close(end)
        try:
            idmapped.unshare(_CLONE_NEWUSER)
            posix.write(made, b"1")
            posix.read(done, 1)
            _mount_kernel_files(made)
        finally:
            posix._exit(0)
    posix.close(made)
    if not posix.read(ready, 1):
        raise Fault("the kernel creates no user namespace (user.max_user_namespaces)")
    for kind in ("uid_map", "gid_map"):
        with open(f"/proc/{child}/{kind}", "wb", buffering=0) as output:
            output.write(b"0 %d %d\n" % (_FIRST, IDS_OF_SERVER))
    found = posix.open(f"/proc/{child}/ns/user", posix.O_RDONLY | posix.O_CLOEXEC)
    posix.close(end)
    answer = posix.read(ready, 100).decode()
    posix.waitpid(child, 0)
    _check(answer)
    return found


def _check(answer: str) -> None:
    """Raise an error unless the answer is that of a process that could mount what it tried."""
    if answer == _MOUNTED:
        return
    what, _, number = answer.partition(":")
    if not number:
        raise OSError(errno.ECHILD, "the process that mounts /proc and /sys was killed")
    reason = posix.strerror(int(number))
    raise Fault(
        f"a user namespace cannot {what}: {reason}; see whether something is mounted over files of "
        "the host's /proc or /sys"
    ) from OSError(int(number), reason)


def _mount_kernel_files(answer: int) -> None:
    """Mount what shows the kernel, in new namespaces of this process's user namespace.

    Write what the kernel refuses, and the error, to ``answer``.
    """
    what = "create other namespaces"
    try:
        idmapped.unshare(_CLONE_NEWNS | _CLONE_NEWPID | _CLONE_NEWNET)
        child = posix.fork()
        if child:
            posix.waitpid(child, 0)
            return
        for kind, place, flags in _KERNEL_MOUNTS:
            what = f"mount {kind}"
            idmapped.mount(kind, place, kind, flags, "")
        posix.write(answer, _MOUNTED.encode())
    except OSError as error:
        posix.write(answer, f"{what}:{error.errno}".encode())
    posix._exit(0)


def _create(path: str) -> None:
    posix.close(posix.open(path, posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL, 0o644))


def refusal(error: Fault | OSError) -> str:
    """Return what the kernel or the file system refuses; empty if the trial gave no answer."""
    cause = error.__cause__ if isinstance(error, Fault) else error
    return str(error) if not isinstance(cause, OSError) or cause.errno in _REFUSALS else ""


def main() -> None:
    """Try it in the directory that is the argument.

    Print what the kernel or the file system refuses. Exit with a message if the trial failed.
    """
    try:
        probe(sys.argv[1])
    except (Fault, OSError) as error:
        reason = refusal(error)
        if not reason:
            sys.exit(str(error))
        print(reason)
