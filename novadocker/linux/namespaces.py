# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: enter, create, mount and unmount them. Pid namespaces: count them.

A thread that has entered another namespace must not serve other calls: see ``run_in_thread``.
"""

import errno
import os
import select
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from novadocker.linux import libc

P = ParamSpec("P")
T = TypeVar("T")

_MAKER_SECONDS = 10

_THREAD_NAMESPACE = "/proc/thread-self/ns/net"
_share_lock = threading.Lock()


@dataclass(frozen=True)
class IdMaps:
    """The user and group ids of containers, as ranges of the host's ids.

    Each range is the first id in the container, the first id on the host, and the number of ids.
    """

    users: tuple[tuple[int, int, int], ...]
    groups: tuple[tuple[int, int, int], ...]


def run_in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function in a new thread, which ends with the function; return the result.

    The function may leave its thread in another namespace, because the thread serves no other
    call. (A child process cannot be used, because a process with threads must not fork.)
    """
    with futures.ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(function, *args, **kwargs).result()


def is_namespace(path: str) -> bool:
    """Return True if a namespace is mounted at ``path``. Needs no privilege."""
    try:
        return os.stat(path).st_dev == os.stat(_THREAD_NAMESPACE).st_dev
    except FileNotFoundError:
        return False


def count_pid_namespaces(process: Path) -> int:
    """Return in how many nested pid namespaces a process is; 0 if the process ended.

    The namespaces that this process can't see do not count, so 1 is its own one.

    :param process: the directory in /proc
    """
    try:
        lines = (process / "status").read_bytes().split(b"\n")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # proc(5): the process's id in each of the namespaces
    return next((len(line.split()) - 1 for line in lines if line.startswith(b"NSpid:")), 1)


def open_namespace(path: str = _THREAD_NAMESPACE) -> int:
    """Return a file descriptor of a network namespace, by default the calling thread's."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def enter_namespace(descriptor: int) -> None:
    """Move the calling thread to a network namespace."""
    libc.setns(descriptor, libc.CLONE_NEWNET)


def enter_namespace_at(path: str) -> None:
    """Move the calling thread to the network namespace mounted at ``path``."""
    descriptor = open_namespace(path)
    try:
        enter_namespace(descriptor)
    finally:
        os.close(descriptor)


def enter_new_namespace() -> None:
    """Move the calling thread to a new network namespace, which is not mounted yet."""
    libc.unshare(libc.CLONE_NEWNET)


def enter_new_owned_namespace(user_path: str, ids: IdMaps) -> None:
    """Move the calling thread to a new network namespace that a new user namespace owns.

    The user namespace is mounted at ``user_path``. A child process creates both, because a process
    with threads cannot create a user namespace. The child has the user of the host that is root
    inside: the kernel counts inotify instances, for example, per creator of a user namespace
    (kernel/ucount.c).

    :raises OSError: a namespace cannot be created
    """
    unmount_namespace(user_path)
    user, group = ids.users[0][1], ids.groups[0][1]
    creator = [
        "setpriv",
        f"--reuid={user}",
        f"--regid={group}",
        "--clear-groups",
        # Some hosts let no other user create user namespaces.
        "--inh-caps=+sys_admin",
        "--ambient-caps=+sys_admin",
    ]
    with _maker([*creator, "unshare", "--user", "--net"], user_path) as process:
        for name, ranges in (("uid_map", ids.users), ("gid_map", ids.groups)):
            lines = [" ".join(map(str, numbers)) for numbers in ranges]
            # Because the kernel accepts one write per map, all ranges are written at once.
            Path(process, name).write_text("\n".join(lines) + "\n")
        mount_namespace(user_path, f"{process}/ns/user")
        enter_namespace_at(f"{process}/ns/net")


def enter_new_namespace_of(user_path: str) -> None:
    """Move the calling thread to a new network namespace that the one at ``user_path`` owns.

    A child process creates it, because a process with threads cannot enter a user namespace.

    :raises OSError: the namespace cannot be created
    """
    with _maker(["nsenter", f"--user={user_path}", "unshare", "--net"], user_path) as process:
        enter_namespace_at(f"{process}/ns/net")


@contextmanager
def _maker(command: Sequence[str], user_path: str) -> Iterator[str]:
    """Yield the directory in /proc of a process that is in new namespaces.

    :param command: creates the namespaces and executes the command that follows
    """
    with subprocess.Popen(
        [*command, "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    ) as maker:
        assert maker.stdin is not None
        assert maker.stdout is not None
        # cat returns the line after unshare(1) has created the namespaces.
        maker.stdin.write(b"\n")
        # Because select(2) accepts no file descriptor above 1023, poll(2) is used.
        answers = select.poll()
        answers.register(maker.stdout, select.POLLIN)
        if not answers.poll(_MAKER_SECONDS * 1000) or not maker.stdout.read(1):
            maker.kill()
            raise OSError(errno.EPERM, "the namespace cannot be created", user_path)
        yield f"/proc/{maker.pid}"


def mount_namespace(path: str, namespace: str = _THREAD_NAMESPACE) -> None:
    """Mount a namespace, by default the calling thread's network namespace, at ``path``.

    A mounted namespace exists without a process. As with ip-netns(8), the directory is a shared
    mount, so that other services see the namespace in their mount namespaces.
    """
    directory = os.path.dirname(path)
    with _share_lock:
        _create_directory(directory)
        _share(directory)
    Path(path).touch(mode=0o444)
    libc.mount(namespace, path, libc.MS_BIND)


def unmount_namespace(path: str) -> None:
    """Unmount a namespace and delete its file. Does nothing if there is none.

    The namespace ends with its last process.
    """
    if is_namespace(path):
        libc.umount(path, libc.MNT_DETACH)
    Path(path).unlink(missing_ok=True)


def _create_directory(directory: str) -> None:
    # Because os.makedirs creates parents with a mode that the umask determines, os.mkdir is used.
    for path in (os.path.dirname(directory), directory):
        with suppress(FileExistsError):
            os.mkdir(path, 0o755)


def _share(directory: str) -> None:
    """Make a directory a shared mount. Idempotent."""
    try:
        libc.mount("", directory, libc.MS_SHARED | libc.MS_REC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Because only a mount can be shared, the directory is mounted on itself first.
        libc.mount(directory, directory, libc.MS_BIND | libc.MS_REC)
        libc.mount("", directory, libc.MS_SHARED | libc.MS_REC)
