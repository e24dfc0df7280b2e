# SPDX-License-Identifier: Apache-2.0
"""The system calls on network namespaces that Python 3.11 has no function for.

A thread that has changed its namespace is never given back to a pool: see ``run_in_thread``.
"""

import errno
import os
import select
import subprocess
import threading
from collections.abc import Callable
from concurrent import futures
from contextlib import suppress
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
    """The users and groups of containers, as ranges of the host's.

    Each range is the first id inside, the first outside, and how many there are.
    """

    users: tuple[tuple[int, int, int], ...]
    groups: tuple[tuple[int, int, int], ...]


def run_in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run a function in a thread of its own, which ends with it.

    So whatever namespace the function leaves its thread in, no other call is served there. (A
    child process would do too, but must not be forked off a process with threads.)
    """
    with futures.ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(function, *args, **kwargs).result()


def is_namespace(path: str) -> bool:
    """Say whether a network namespace is mounted at ``path``; needs no privilege."""
    try:
        return os.stat(path).st_dev == os.stat(_THREAD_NAMESPACE).st_dev
    except FileNotFoundError:
        return False


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
    """Move the calling thread to a network namespace of its own, as yet without a name."""
    libc.unshare(libc.CLONE_NEWNET)


def enter_new_owned_namespace(user_path: str, ids: IdMaps) -> None:
    """Move the calling thread to a new network namespace that belongs to a new user namespace.

    The latter is mounted at ``user_path``. Another process makes them: one with threads can't.
    """
    remove_name(user_path)
    with subprocess.Popen(
        ["unshare", "--user", "--net", "cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    ) as maker:
        assert maker.stdin is not None
        assert maker.stdout is not None
        # what comes back shows that the namespaces are there
        maker.stdin.write(b"\n")
        # select() takes no descriptor from 1024 on
        answers = select.poll()
        answers.register(maker.stdout, select.POLLIN)
        if not answers.poll(_MAKER_SECONDS * 1000) or not maker.stdout.read(1):
            maker.kill()
            raise OSError(errno.EPERM, "no user namespace can be made", user_path)
        process = f"/proc/{maker.pid}"
        for name, ranges in (("uid_map", ids.users), ("gid_map", ids.groups)):
            lines = [" ".join(map(str, numbers)) for numbers in ranges]
            # the kernel takes a map in one piece only
            Path(process, name).write_text("\n".join(lines) + "\n")
        name_namespace(user_path, f"{process}/ns/user")
        enter_namespace_at(f"{process}/ns/net")


def name_namespace(path: str, namespace: str = _THREAD_NAMESPACE) -> None:
    """Mount a namespace, by default the calling thread's network, at ``path``, so that it stays.

    As ip-netns(8) does it: the folder is a shared mount, by which the names reach the mount
    namespaces of other services.
    """
    folder = os.path.dirname(path)
    with _share_lock:
        _make_folder(folder)
        _share(folder)
    Path(path).touch(mode=0o444)
    libc.mount(namespace, path, libc.MS_BIND)


def remove_name(path: str) -> None:
    """Take the name from a namespace; it ends with its last process. Absent is fine."""
    if is_namespace(path):
        libc.umount(path, libc.MNT_DETACH)
    Path(path).unlink(missing_ok=True)


def _make_folder(folder: str) -> None:
    # not makedirs, which gives parents whatever mode the umask leaves
    for path in (os.path.dirname(folder), folder):
        with suppress(FileExistsError):
            os.mkdir(path, 0o755)


def _share(folder: str) -> None:
    """Turn a directory into a shared mount, which a directory of another mount becomes first."""
    try:
        libc.mount("", folder, libc.MS_SHARED | libc.MS_REC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        libc.mount(folder, folder, libc.MS_BIND | libc.MS_REC)
        libc.mount("", folder, libc.MS_SHARED | libc.MS_REC)
