# SPDX-License-Identifier: Apache-2.0
"""Images that another host sends in a move, announced by their id.

The archive is read and written anew as a tenant's: names in it have no effect, its image must be
the announced one before the engine gets a manifest, and its layers must match their digests. This
module imports nothing of Nova's objects, because ``novadocker-receive`` uses it.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from novadocker import naming
from novadocker.conf import CONF
from novadocker.virt.docker.images import archive, room, streaming, writer
from novadocker.virt.docker.images.platforms import Platform
from novadocker.virt.docker.images.regions import ArchiveError
from novadocker.virt.docker.model import EngineInfo

# What an archive has beside its layers.
_METADATA_BYTES = 16 << 20
# A boot bounds an image of a registry by the size of its files. As tar archives, its layers are
# larger: each file has a header of 512 bytes and is padded to 512.
_TAR_SHARE = 2


class Engine(Protocol):
    """The functions of the engine's client that this module calls."""

    def info(self) -> EngineInfo:
        """Return the facts of the engine and its host."""

    def load_image(self, chunks: Iterable[bytes]) -> str:
        """Load an archive of one image; return the image's id."""


def load(
    engine: Engine, image_id: str, receive: Callable[[int], Iterator[bytes]], most: int
) -> None:
    """Load an image from an archive that arrives.

    :param image_id: the engine's id of the image
    :param receive: yields the archive of at most so many bytes
    :param most: bytes that the image may have when it is unpacked; 0 means no bound. Its layers may
        have twice as much as tar archives, so the caller checks the size of the loaded image
    :raises ValueError: the archive is malformed, or has another image
    :raises EngineError: the engine refuses the image
    """
    folder = Path(CONF.instances_path)
    folder.mkdir(parents=True, exist_ok=True)
    limit = room.left(folder)
    if most:
        limit = min(limit, _TAR_SHARE * most + _METADATA_BYTES)

    def write(file: streaming.Arrival) -> None:
        for chunk in receive(limit):
            file.write(chunk)

    platform = Platform(naming.docker_architecture(engine.info().architecture))
    try:
        with streaming.arriving(folder, 0, write) as arrival:
            engine.load_image(_checked(arrival, image_id, platform, folder, most))
    except ArchiveError as error:
        raise ValueError(f"the archive of image {image_id} is refused: {error}") from error


def _checked(
    arrival: streaming.Arrival, image_id: str, platform: Platform, folder: Path, most: int
) -> Iterator[bytes]:
    """Yield the archive that the engine loads."""
    try:
        yield from arrival.layers(None)
        with archive.open_image(arrival.complete(), platform, folder, most, _TAR_SHARE) as image:
            if f"sha256:{image.digest}" != image_id:
                raise ArchiveError("the archive has another image than the announced one")
            yield from writer.docker_archive(image, arrival.early)
    except OSError as error:
        # The engine's client takes an OSError for one of its own connection, so it is translated.
        raise ArchiveError(f"the archive cannot be stored: {error}") from error
