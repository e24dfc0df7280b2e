# SPDX-License-Identifier: Apache-2.0
"""Records of the instances that came from another host and are not complete here yet.

Nova has such an instance on this host and does not send it back, so a move that was cut off must be
finished here. The records are files, because they must outlive nova-compute and Nova's database has
no field for them.
"""

import contextlib
from pathlib import Path

from novadocker.linux.files import replace_file


class IncomingMoves:
    """The unfinished incoming moves of this host.

    :param folder: directory of the records; it is created when it is needed
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, instance_uuid: str, text: str) -> None:
        """Write the record of a move, before anything of the instance is changed.

        :param text: the ``disk_info`` of the source
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        replace_file(self._folder / instance_uuid, text.encode(), mode=None, sync=True)

    def get(self, instance_uuid: str) -> str | None:
        """Return the ``disk_info`` of an unfinished move; None if the instance has none."""
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / instance_uuid).read_text()
        return None

    def end(self, instance_uuid: str) -> None:
        """Delete the record of an instance that is complete or deleted. Idempotent."""
        (self._folder / instance_uuid).unlink(missing_ok=True)
