# SPDX-License-Identifier: Apache-2.0
"""What the users of this host use of limits that the kernel has for each user, for the exporter."""

from collections.abc import Callable
from pathlib import Path

from novadocker.linux.threads import Repeated
from novadocker.privsep.guest import user_files
from novadocker.state_files import user_budgets

_EVERY_SECONDS = 300.0
# linux/pipe_fs_i.h: PIPE_DEF_BUFFERS
_PAGES_OF_A_PIPE = 16


class UserBudgets(Repeated):
    """A thread that counts every five minutes, because a count takes up to a second.

    :param state_path: of nova-compute
    :param count: returns the inotify instances and the pipes of the user who has most of each
    """

    def __init__(
        self, state_path: Path, count: Callable[[], tuple[int, int]] = user_files.count_user_files
    ) -> None:
        super().__init__("user-budgets", self.tell, _EVERY_SECONDS)
        self._state_path = state_path
        self._count = count

    def tell(self) -> None:
        """Write the use of each budget for the exporter.

        :raises OSError: the file cannot be written
        """
        inotify, pipes = self._count()
        used = {"inotify_instances": inotify, "pipe_pages": pipes * _PAGES_OF_A_PIPE}
        user_budgets.tell(self._state_path, used)
