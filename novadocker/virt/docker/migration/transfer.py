# SPDX-License-Identifier: Apache-2.0
"""A server's data to another host: the bulk while it runs, the difference when it does not.

A command, ssh unless the operator says otherwise, starts ``novadocker-receive`` on the other host.
The two exchange lines of JSON; the streams of ``trees`` go one of the two ``ways``. The other host
keeps nothing unless the last line says that all is there.
"""

from __future__ import annotations

import json
import math
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass

from oslo_log import log as logging

from novadocker import exception
from novadocker.privsep.storage import staging
from novadocker.virt.docker.migration.protocol import ANSWER_SECONDS, Conversation, conversation
from novadocker.virt.docker.migration.transport import Way
from novadocker.virt.docker.model import Storage

LOG = logging.getLogger(__name__)

VERSION = 1

# of what is sent while the server runs
_ROUNDS = 4
_LITTLE_SECONDS = 1.0


@dataclass(frozen=True)
class Move:
    """What the source tells the destination of a server's move, in Nova's ``disk_info``.

    :ivar token: names what is staged
    :ivar image_id: the engine's, of the image that the data belongs on
    :ivar volumes: their paths in the container, in the order of their folders after the first
    :ivar drive: whether the last folder is a config drive
    """

    token: str
    image_id: str
    volumes: Sequence[str]
    drive: bool
    version: int = VERSION
    same_host: bool = False

    def to_text(self) -> str:
        """Return it as Nova carries it."""
        return json.dumps(asdict(self))


def read_move(text: str) -> Move | None:
    """Return what another host tells of a server's move; None when the server stays.

    :raises ResizeRefused: the other host speaks of something that this one does not know, or what
        it said is damaged
    """
    try:
        fields = json.loads(text)
        if fields["same_host"]:
            return None
        if fields["version"] == VERSION:
            return Move(**fields)
    except (KeyError, TypeError, ValueError) as error:
        raise exception.ResizeRefused(
            reason="What the source host said of the server is damaged"
        ) from error
    raise exception.ResizeRefused(
        reason="The source host has another release of the driver, which can't be understood"
    )


class Session:
    """Sends a server's folders to one host."""

    def __init__(self, talk: Conversation, way: Way, token: str, folders: list[str]) -> None:
        self._talk = talk
        self._way = way
        self._token = token
        self._folders = folders

    def send_ahead(self) -> None:
        """Send everything while the server runs, and what changes meanwhile until that is little.

        Else what is left for later would grow with the time that everything takes. It may not
        become less, where a server writes as fast as its data travels. Raises as ``send``.
        """
        before = math.inf
        for _ in range(_ROUNDS):
            seconds = self.send(live=True)
            if seconds < _LITTLE_SECONDS or seconds > before / 2:
                break
            before = seconds
        LOG.info("Sent all but what changes from now on")

    def send(self, live: bool) -> float:
        """Send everything, then what changed since it was sent; return the seconds it took.

        :param live: whether the server runs; then a call without it must follow
        :raises NovaException: it can't be sent or kept
        """
        begin = time.monotonic()

        def write(target: tuple[int, int]) -> int:
            return int(staging.send_folders(self._token, self._folders, target, live))

        sent = self._way.send_stream(self._talk, write)
        seconds = time.monotonic() - begin
        LOG.info("Sent %.1f MiB in %.2f s%s", sent / 2**20, seconds, ", live" if live else "")
        return seconds

    def commit(self) -> None:
        """Have the other host keep what was sent.

        :raises ResizeRefused: it does not say so
        """
        self._talk.tell({"commit": True})
        self._talk.expect("kept")


@contextmanager
def session(
    command: Sequence[str],
    host: str,
    way: Way,
    instance_uuid: str,
    image_id: str,
    storage: Storage,
    drive: str,
) -> Iterator[tuple[Session, Move]]:
    """Talk to a host that is to take a server; what it does not keep it removes.

    It has the server's image when this returns.

    :param command: with ``{host}`` for the address
    :param drive: the folder of the server's config drive, if it has one
    :returns: also what the destination must be told by Nova
    :raises NovaException: the host is not reached, or refuses
    """
    if storage.driver != "overlay2":
        raise exception.ResizeRefused(
            reason=f"The engine's storage driver is {storage.driver}; a server moves with overlay2"
        )
    token = secrets.token_hex(16)
    volumes = sorted(storage.volumes)
    folders = [storage.upper, *(storage.volumes[path] for path in volumes), *filter(None, [drive])]
    with conversation(command, host) as talk, ExitStack() as after:
        after.callback(staging.forget_folders, token)
        after.callback(way.clear)
        talk.tell({"version": VERSION, "uuid": instance_uuid, "token": token, "image": image_id})
        if not talk.expect("ready", ANSWER_SECONDS)["image"]:
            LOG.info("The destination has no image %s: sending it", image_id)
            way.send_image(talk, image_id)
        yield Session(talk, way, token, folders), Move(token, image_id, volumes, bool(drive))


def adopt_drive(data_root: str, instance_uuid: str, move: Move, folder: str) -> None:
    """Make the config drive that was sent this host's own; it may be so already."""
    staging.adopt_folder(data_root, instance_uuid, move.token, len(move.volumes) + 1, folder)


def adopt(data_root: str, instance_uuid: str, move: Move, storage: Storage, resumed: bool) -> None:
    """Make what was sent the data of a container that has not been started yet.

    :param resumed: whether some of it may be the container's already
    :raises ResizeRefused: the container has other volumes than the one that it was
    :raises OSError: it is not there, or can't be moved
    """
    if sorted(storage.volumes) != sorted(move.volumes):
        raise exception.ResizeRefused(reason="The image has other volumes than on the source host")
    folders = [storage.upper, *(storage.volumes[path] for path in move.volumes)]
    for number, folder in enumerate(folders):
        adopted = staging.adopt_folder(data_root, instance_uuid, move.token, number, folder)
        if not adopted and not resumed:
            raise exception.ResizeRefused(reason="What the source host sent is not there any more")


def discard(data_root: str, instance_uuid: str) -> None:
    """Remove what was sent of a server and not made its own; nothing is fine."""
    staging.discard_folders(data_root, instance_uuid)
