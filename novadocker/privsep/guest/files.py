# SPDX-License-Identifier: Apache-2.0
"""Privileged entry points for what changes inside a running container.

Each checks its arguments and trusts nobody, least of all what it finds in the container.
"""

import os
import select
import signal
from contextlib import suppress

from novadocker import privsep
from novadocker.linux import accounts, openat
from novadocker.privsep import arguments
from novadocker.privsep.guest import runtime

# for a shell to save its history
_HANG_UP_MILLISECONDS = 2000


@privsep.interior_pctxt.entrypoint
def set_password(container_id: str, pid: int, user: str, password_hash: str, day: int) -> bool:
    """Make a hash an account's password; return whether the container has an account for it.

    :param pid: of the container's first process
    :param day: when the password was set, in days since 1970
    :raises ValueError: an argument is not well-formed
    :raises OSError: the container's files can't be read or replaced, or the process is not its
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
def hang_up(container_id: str, pid: int) -> None:
    """End a process of a container as the loss of its terminal would; one that is gone is fine.

    :raises ValueError: an argument is not well-formed
    """
    container, number = arguments.container_id(container_id), arguments.process(pid)
    with suppress(ProcessLookupError):
        process = os.pidfd_open(number)
        try:
            # the descriptor is of that process, so what is read while it lives is, too
            openat.check_process(container, number)
            signal.pidfd_send_signal(process, signal.SIGHUP)
            ended = select.poll()
            ended.register(process, select.POLLIN)
            if not ended.poll(_HANG_UP_MILLISECONDS):
                signal.pidfd_send_signal(process, signal.SIGKILL)
        finally:
            os.close(process)
