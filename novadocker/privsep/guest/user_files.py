# SPDX-License-Identifier: Apache-2.0
"""Privileged: the use of the kernel's limits by the users of all servers and of the host."""

from novadocker import privsep
from novadocker.linux import user_files


@privsep.interior_pctxt.entrypoint
def count_user_files() -> tuple[int, int]:
    """Return the inotify instances and the pipes of the user who has most of each."""
    found = user_files.count()
    return user_files.highest(found.inotify), user_files.highest(found.pipes)
