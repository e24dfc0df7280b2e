# SPDX-License-Identifier: Apache-2.0
"""Reading the resources that the instances of a host share, from pids to storage and the engine."""

import http.client
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from novadocker.exporter import parsing
from novadocker.exporter.files import read

ENGINE_SECONDS = 5.0
"""Time within which the engine must answer; well below Prometheus's default timeout of 10 s."""

_MOST_LOG_ENTRIES = 10_000
_LARGEST_ANSWER = 1 << 20


@dataclass(frozen=True)
class Shared:
    """The kernel's counters of the host; None for those that the kernel does not provide.

    :ivar threads_limit: the lower of pid_max and threads-max
    :ivar open_files: open files, and their limit
    :ivar user_keys: keys and their limit, of the user who is nearest to the limit
    :ivar user_limits: limits for each user, by the names of ``state_files.user_budgets``
    :ivar memory: values of /proc/meminfo in bytes, by name
    """

    threads: int | None
    threads_limit: int | None
    tracked_connections: int | None
    tracked_connections_limit: int | None
    dropped_connections: int | None
    aio_requests: int | None
    aio_requests_limit: int | None
    open_files: tuple[int, int] | None
    user_keys: tuple[int, int] | None
    user_limits: dict[str, int | None]
    memory: dict[str, int]


@dataclass(frozen=True)
class Storage:
    """Size and free space of a file system; root's reserve does not count as free."""

    size_bytes: int
    free_bytes: int
    inodes: int
    free_inodes: int


def read_shared(root: Path = Path("/")) -> Shared:
    """Return the kernel's counters of the host.

    :param root: directory that contains /proc
    """

    def proc(path: str) -> str | None:
        return read(str(root / "proc" / path))

    limits = [parsing.number(proc(f"sys/kernel/{name}")) for name in ("pid_max", "threads-max")]
    return Shared(
        threads=parsing.threads(proc("loadavg")),
        threads_limit=min((found for found in limits if found is not None), default=None),
        tracked_connections=parsing.number(proc("sys/net/netfilter/nf_conntrack_count")),
        tracked_connections_limit=parsing.number(proc("sys/net/netfilter/nf_conntrack_max")),
        dropped_connections=parsing.dropped_connections(proc("net/stat/nf_conntrack")),
        aio_requests=parsing.number(proc("sys/fs/aio-nr")),
        aio_requests_limit=parsing.number(proc("sys/fs/aio-max-nr")),
        open_files=parsing.open_files(proc("sys/fs/file-nr")),
        user_keys=parsing.user_keys(proc("key-users")),
        user_limits={
            "inotify_instances": parsing.number(proc("sys/fs/inotify/max_user_instances")),
            "pipe_pages": parsing.number(proc("sys/fs/pipe-user-pages-soft")),
        },
        memory=parsing.memory_info(proc("meminfo")),
    )


def read_storage(path: Path) -> Storage | None:
    """Return size and free space of the file system at a path; None if the path does not exist."""
    try:
        found = os.statvfs(path)
    except FileNotFoundError:
        return None
    return Storage(
        size_bytes=found.f_blocks * found.f_frsize,
        free_bytes=found.f_bavail * found.f_frsize,
        inodes=found.f_files,
        free_inodes=found.f_favail,
    )


def log_bytes(root: Path = Path("/")) -> int | None:
    """Return the size of all files below /var/log; None if that directory does not exist.

    Reads at most about 10,000 directory entries. Does not follow symbolic links.
    """
    waiting, size, left = [root / "var/log"], 0, _MOST_LOG_ENTRIES
    if not waiting[0].is_dir():
        return None
    while waiting and left > 0:
        # A log may be rotated and deleted during the walk.
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                left -= 1
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    size += entry.stat(follow_symlinks=False).st_size
    return size


def ping_engine(path: str) -> float | None:
    """Return the engine's response time in seconds; None if it did not answer in time.

    :param path: socket of the engine
    """
    begin = time.monotonic()
    return None if ask_engine(path, "/_ping") is None else time.monotonic() - begin


def ask_engine(path: str, what: str) -> bytes | None:
    """Return the engine's response; None if it is an error or did not arrive in time.

    :param path: socket of the engine
    :param what: path of the REST API
    """
    connection = http.client.HTTPConnection("localhost", timeout=ENGINE_SECONDS)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.sock.settimeout(ENGINE_SECONDS)
        connection.sock.connect(path)
        connection.request("GET", what)
        answer = connection.getresponse()
        return answer.read(_LARGEST_ANSWER) if answer.status == http.HTTPStatus.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
