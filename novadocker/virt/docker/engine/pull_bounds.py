# SPDX-License-Identifier: Apache-2.0
"""Bounds of an image that the engine pulls from a registry.

The engine reports the size of each layer as the registry has it, which is compressed, and of the
image only when it has unpacked it. A few KB can unpack to any size, so the free space is watched
meanwhile.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from novadocker import exception
from novadocker.linux import space

_GROWING = frozenset({"Downloading", "Extracting"})


class PullBounds:
    """The bounds of one pull.

    :param name: the image's, for the fault
    :param data_root: the engine's
    :param most: bytes that the image may have; 0 means no other bound than the host's free space
    """

    def __init__(self, name: str, data_root: str, most: int) -> None:
        self._name = name
        self._data_root = Path(data_root)
        self._most = most
        self._free = self._free_now()
        # By layer: a layer that is downloaded is no longer reported.
        self._sizes: dict[str, int] = {}
        self._size = 0

    def note(self, message: Mapping[str, Any]) -> None:
        """Check a message of the engine about the progress of the pull.

        :raises ImageTooLarge: the image is larger than it may be
        :raises EngineError: it takes more than half of the host's free space
        """
        detail = message.get("progressDetail") or {}
        if message.get("status") in _GROWING:
            layer = str(message.get("id"))
            size = max(int(detail.get("current") or 0), int(detail.get("total") or 0))
            more = size - self._sizes.get(layer, 0)
            if more > 0:
                self._sizes[layer] = size
                self._size += more
                self.check(self._size)
        if self._free_now() < self._free // 2:
            raise exception.EngineError(
                operation="to pull the image",
                reason="this host has not enough free space for the unpacked image",
            )

    def check(self, size: int) -> None:
        """Check the size of the image, as far as it is known.

        :raises ImageTooLarge: it is larger than it may be
        """
        if self._most and size > self._most:
            raise exception.ImageTooLarge(name=self._name, size=size, most=self._most)

    def _free_now(self) -> int:
        disk = space.of_data_root(self._data_root)
        return disk.f_bavail * disk.f_frsize
