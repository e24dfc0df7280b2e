# SPDX-License-Identifier: Apache-2.0
"""Whether a server's own user namespace has an id for the owner of each file of an image."""

from collections.abc import Callable, Sequence

from novadocker import exception, extra_specs
from novadocker.runtime.record import IDS_OF_SERVER
from novadocker.virt.docker.model import EngineImage

_LONGEST_PATH = 60


class Owners:
    """The images whose files have only owners with an id in a server's own user namespace.

    Each image is read once.

    :param find_above: returns a file of these layers whose owner has a higher id, and the id
    """

    def __init__(self, find_above: Callable[[Sequence[str], int], tuple[str, int] | None]) -> None:
        self._find_above = find_above
        self._fit: set[str] = set()

    def check(self, image_id: str, image: EngineImage) -> None:
        """Refuse an image with a file whose owner has no id in a server's own user namespace.

        :param image_id: id in Glance
        :raises InvalidImage: names the file
        :raises OSError: a layer cannot be read
        """
        if image.id in self._fit:
            return
        if found := self._find_above(image.layers, IDS_OF_SERVER - 1):
            path, owner = found
            raise exception.InvalidImage(
                image_id=image_id,
                reason=f"/{path[:_LONGEST_PATH]} belongs to user or group {owner}, but a server's "
                f"own user namespace has ids up to {IDS_OF_SERVER - 1} only "
                f"({extra_specs.USERNS.name}=host)",
            )
        self._fit.add(image.id)
