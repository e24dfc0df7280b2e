# SPDX-License-Identifier: Apache-2.0
"""Privileged functions for a running container: its passwords, files and processes.

Each checks its arguments and does not trust the files in the container.
"""

import os
import select
import signal
from contextlib import suppress

from novadocker import privsep
from novadocker.linux import libc, openat
from novadocker.privsep import arguments
from novadocker.privsep.guest import runtime
from novadocker.runtime import accounts, record

PROGRAMS = frozenset(("/bin/login", "/usr/bin/login", "/bin/bash", "/bin/sh"))
"""Programs that a console may run."""

# A shell saves its history within this time.
_HANG_UP_MILLISECONDS = 2000


@privsep.interior_pctxt.entrypoint
def set_password(container_id: str, pid: int, user: str, password_hash: str, day: int) -> bool:
    """Set the password hash of an account.

    :param pid: process id of the container's first process
    :param day: day on which the password was set, in days since 1970
    :returns: False if the container has no such account with a shadow password
    :raises ValueError: an argument is malformed
    :raises OSError: the container's files can't be read or replaced, or the process does not
        belong to the container
    """
    container, process = arguments.container_id(container_id), arguments.process(pid)
    runtime.check_login(user, password_hash)
    arguments.number(runtime.DAYS, day)
    with openat.open_root(container, process) as root:
        if not accounts.shadowed(openat.read_file(root, "/etc/passwd") or b"", user):
            return False
        shadow = openat.read_file(root, "/etc/shadow") or b""
        changed = accounts.set_password(shadow, user, password_hash, day)
        openat.replace_file(root, "/etc/shadow", changed)
    return True


@privsep.interior_pctxt.entrypoint
def read_etc_file(container_id: str, pid: int, name: str) -> bytes | None:
    """Return the content of a file in /etc of a container; None if it does not exist.

    :param pid: process id of the container's first process
    :param name: one of ``record.ETC_FILES``
    :raises ValueError: an argument is malformed
    :raises OSError: it is not a regular file of at most 1 MiB, or the process does not belong to
        the container
    """
    container, process = arguments.container_id(container_id), arguments.process(pid)
    known = arguments.one_of(record.ETC_FILES.keys(), name)
    with openat.open_root(container, process) as root:
        return openat.read_file(root, f"/etc/{known}")


@privsep.interior_pctxt.entrypoint
def has_program(container_id: str, pid: int, path: str) -> bool:
    """Return True if a container has a program; symbolic links are resolved inside it.

    :param pid: process id of the container's first process
    :param path: one of ``PROGRAMS``
    :raises ValueError: an argument is malformed
    :raises ProcessLookupError: the process does not belong to the container
    """
    container, process = arguments.container_id(container_id), arguments.process(pid)
    known = arguments.one_of(PROGRAMS, path)
    with openat.open_root(container, process) as root:
        try:
            os.close(libc.openat2(root, known, os.O_PATH | os.O_CLOEXEC, libc.RESOLVE_IN_ROOT))
        except (FileNotFoundError, NotADirectoryError):
            return False
    return True


@privsep.interior_pctxt.entrypoint
def put_etc_file(container_id: str, pid: int, name: str, content: bytes) -> None:
    """Replace a file in /etc of a container, or create it.

    :param pid: process id of the container's first process
    :param name: one of ``record.ETC_FILES``
    :raises ValueError: an argument is malformed
    :raises OSError: the file can't be replaced, or the process does not belong to the container
    """
    container, process = arguments.container_id(container_id), arguments.process(pid)
    known = arguments.one_of(record.ETC_FILES.keys(), name)
    data = arguments.data(record.LARGEST_ETC_FILE, content)
    with openat.open_root(container, process) as root:
        openat.replace_file(root, f"/etc/{known}", data, record.ETC_FILES[known])


@privsep.interior_pctxt.entrypoint
def hang_up(container_id: str, pid: int) -> None:
    """End a process of a container by SIGHUP, and after 2 seconds by SIGKILL.

    Does nothing if the process does not exist or does not belong to the container.

    :raises ValueError: an argument is malformed
    """
    container, number = arguments.container_id(container_id), arguments.process(pid)
    with suppress(ProcessLookupError), openat.pinned(number) as process:
        openat.check_process(container, number, process)
        signal.pidfd_send_signal(process, signal.SIGHUP)
        ended = select.poll()
        ended.register(process, select.POLLIN)
        if not ended.poll(_HANG_UP_MILLISECONDS):
            signal.pidfd_send_signal(process, signal.SIGKILL)
