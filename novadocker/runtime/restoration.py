# SPDX-License-Identifier: Apache-2.0
"""The restore of a container's processes from CRIU's images, by runc.

Images are restored once. A server that ran on after a restore has changed its files, so the memory
of the images would not fit them any more. So the directory of images has another name before runc
begins, and gets its name back only after runc has failed.
"""

import _stat
import posix

from novadocker.runtime import documents, record, tree
from novadocker.runtime.tree import Fault

_LARGEST_LOG = 1 << 20


def restore(
    container_id: str,
    wanted: record.Restore,
    content: bytes,
    folder: int,
    arguments: list[str],
) -> None:
    """Restore a container, and mark that the next ``start`` has nothing to do.

    :param content: the container's record
    :param folder: a descriptor of the directory of records
    :param arguments: of the call of runc
    :raises Fault: the processes can't be restored; the images are kept
    """
    _check_private(wanted.images)
    _write(folder, container_id, _without_restore(content))
    used = f"{wanted.images}{record.USED}"
    _rename(wanted.images, used)
    if _run(words(arguments, used), wanted.criu):
        reason = _first_error(f"{used}/restore.log")
        _rename(used, wanted.images)
        raise Fault(f"the memory of container {container_id} can't be restored: {reason}")
    _write(folder, f"{container_id}{record.RESTORED}", b"")


def words(arguments: list[str], images: str) -> list[str]:
    """Return the arguments of runc that restore a container in place of those that create it."""
    place = arguments.index("create")
    inserted = [
        "restore",
        "--detach",
        *record.CRIU_OPTIONS,
        "--image-path",
        images,
        "--work-path",
        images,
    ]
    return [*arguments[:place], *inserted, *arguments[place + 1 :]]


def _check_private(images: str) -> None:
    """Check that only root can read and change a directory of images.

    :raises Fault: it does not exist, or others can
    """
    try:
        status = posix.stat(images, follow_symlinks=False)
    except FileNotFoundError:
        raise Fault("the memory of the server is not on this host any more") from None
    # The shim's user is root, except in tests.
    if (
        not _stat.S_ISDIR(status.st_mode)
        or status.st_uid != posix.geteuid()
        or status.st_mode & (_stat.S_IRWXG | _stat.S_IRWXO)
    ):
        raise Fault("the memory of the server is not in a directory that only root can read")


def _without_restore(content: bytes) -> bytes:
    found = record.parse(content)
    found.restore = None
    return record.serialize(found)


def _write(folder: int, name: str, content: bytes) -> None:
    """Replace a file at once."""
    draft = f".{name}.draft"
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_NOFOLLOW | posix.O_CLOEXEC
    descriptor = posix.open(draft, flags, 0o644, dir_fd=folder)
    try:
        posix.write(descriptor, content)
    finally:
        posix.close(descriptor)
    posix.rename(draft, name, src_dir_fd=folder, dst_dir_fd=folder)


def _rename(source: str, target: str) -> None:
    """Rename a directory of images, also for the time after a power loss."""
    posix.rename(source, target)
    flags = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC
    descriptor = posix.open(target.rpartition("/")[0], flags)
    try:
        posix.fsync(descriptor)
    finally:
        posix.close(descriptor)


def _run(arguments: list[str], criu: str) -> int:
    """Run runc with the descriptors of this program; return its exit status, 0 for success."""
    path = posix.environ.get(b"PATH", b"/usr/sbin:/usr/bin:/sbin:/bin")
    environment = {**posix.environ, b"PATH": criu.encode() + b":" + path}
    # The server inherits the descriptors 0 to 2, and would inherit any other one, too.
    pid = posix.posix_spawnp("runc", ["runc", *arguments], environment)
    return posix.waitstatus_to_exitcode(posix.waitpid(pid, 0)[1])


def _first_error(path: str) -> str:
    """Return the first error in CRIU's log, at most 200 characters; it causes the others."""
    try:
        with open(path, "rb", buffering=0) as source:
            content = tree.read_all(source.fileno(), _LARGEST_LOG) or b""
    except OSError:
        return "CRIU wrote no log"
    errors = [line for line in content.split(b"\n") if b"Error" in line]
    text = errors[0].decode(errors="replace") if errors else "CRIU names no error"
    return documents.serialize(text[:200]).decode().strip('"')
