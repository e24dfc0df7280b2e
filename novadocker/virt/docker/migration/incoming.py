# SPDX-License-Identifier: Apache-2.0
"""Servers that came from another host and are not whole here yet, with what their source said.

Nova has them on this host by then and knows no way back, so what was cut off must be finished here.
Kept in files since it must outlive nova-compute; Nova's own records have no room for it.
"""

import contextlib
import os
from pathlib import Path


class Arrivals:
    """The unfinished arrivals of this host.

    :param folder: made when it is needed
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def begin(self, instance_uuid: str, text: str) -> None:
        """Note what the source said of a server, before anything of it is touched."""
        self._folder.mkdir(parents=True, exist_ok=True)
        beside = self._folder / f"{instance_uuid}.new"
        with beside.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._folder / instance_uuid)

    def get(self, instance_uuid: str) -> str | None:
        """Return what the source said of a server that is not whole yet; None for all others."""
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / instance_uuid).read_text()
        return None

    def end(self, instance_uuid: str) -> None:
        """Forget a server, which is whole now or gone; unknown is fine."""
        (self._folder / instance_uuid).unlink(missing_ok=True)
