# SPDX-License-Identifier: Apache-2.0
"""The source's part of a move: most data goes while the instance runs, the rest when it is stopped.

The operator's ``transfer_command``, ssh by default, starts ``novadocker-receive`` on the
destination. Both ends speak ``protocol``; the streams of ``tree_stream`` take one of the
``transports``. The destination keeps no data unless the source commits the move.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from oslo_log import log as logging
from oslo_privsep import comm

from novadocker import exception
from novadocker.linux.pipes import Write
from novadocker.privsep.storage import staging
from novadocker.virt.docker.migration import destination, protocol
from novadocker.virt.docker.migration.destination import Destination
from novadocker.virt.docker.migration.disk_info import Move
from novadocker.virt.docker.migration.transports.transport import Transport
from novadocker.virt.docker.model import Storage

LOG = logging.getLogger(__name__)

# How often the data is sent while the instance runs.
_ROUNDS = 4
_SHORT_SECONDS = 1.0

# The cloud tests wait for this log line, so it has a name.
SENT_AHEAD = "Sent the data of the running instance; only later changes remain"


class Session:
    """Sends an instance's directories to one host."""

    def __init__(
        self,
        instance_uuid: str,
        target: Destination,
        transport: Transport,
        token: str,
        folders: list[str],
    ) -> None:
        self._instance_uuid = instance_uuid
        self._target = target
        self._transport = transport
        self._token = token
        self._folders = folders

    def send_ahead(self) -> None:
        """Send everything while the instance runs, then the changes, until a round is short.

        Otherwise the changes that remain for the downtime would grow with the time that everything
        takes. The rounds also end when the last one took more than half as long as the one before,
        because then the instance writes about as fast as its data travels. Raises as ``send``.
        """
        before = math.inf
        for _ in range(_ROUNDS):
            seconds = self.send(live=True)
            if seconds < _SHORT_SECONDS or seconds > before / 2:
                break
            before = seconds
        LOG.info(SENT_AHEAD, instance_uuid=self._instance_uuid)

    def send(self, live: bool) -> float:
        """Send everything, or what changed since the last call; return the seconds it took.

        :param live: whether the instance runs; then a call without it must follow
        :raises NovaException: the data cannot be sent or applied
        :raises OSError: the data cannot be read
        """
        begin = time.monotonic()
        write = stream_writer(self._token, self._folders, live)
        sent = self._transport.send_stream(self._target, write)
        seconds = time.monotonic() - begin
        LOG.info(
            "Sent %.1f MiB in %.2f s%s",
            sent / 2**20,
            seconds,
            ", live" if live else "",
            instance_uuid=self._instance_uuid,
        )
        return seconds

    def commit(self) -> None:
        """Make the staged data permanent on the destination.

        :raises ResizeRefused: the destination does not confirm it
        """
        self._target.ask(protocol.Commit())


@contextmanager
def session(
    command: Sequence[str],
    host: str,
    transport: Transport,
    instance_uuid: str,
    image_id: str,
    storage: Storage,
    drive: str,
) -> Iterator[tuple[Session, Move]]:
    """Open a session with the destination host; without a commit that host deletes all data.

    The destination has the instance's image when the block begins.

    :param command: with ``{host}`` for the address
    :param drive: the directory of the instance's config drive; empty if it has none
    :returns: also what Nova must carry to the destination
    :raises NovaException: the host is not reached, or refuses
    """
    if storage.driver != "overlay2":
        raise exception.ResizeRefused(
            reason=f"The engine's storage driver is {storage.driver}; a server moves with overlay2"
        )
    token = secrets.token_hex(16)
    volumes = sorted(storage.volumes)
    folders = [storage.upper, *(storage.volumes[path] for path in volumes), *filter(None, [drive])]
    with destination.connect(command, host, instance_uuid) as target, ExitStack() as after:
        after.callback(staging.forget_folders, token)
        after.callback(transport.clear)
        target.send(protocol.Greeting(instance_uuid, token, image_id))
        if not target.expect(protocol.Ready, protocol.GREETING_SECONDS).image:
            LOG.info(
                "The destination does not have image %s, so it is sent",
                image_id,
                instance_uuid=instance_uuid,
            )
            transport.send_image(target, image_id)
        yield (
            Session(instance_uuid, target, transport, token, folders),
            Move(token, image_id, volumes, bool(drive)),
        )


def stream_writer(token: str, folders: list[str], live: bool) -> Write:
    """Return a function that writes an instance's directories, or their changes, to a pipe.

    It raises TimeoutError when the privileged call exceeds its time.

    :param token: names the move or backup
    :param live: whether the instance runs
    """

    def write(target: tuple[int, int]) -> int:
        try:
            return int(staging.send_folders(token, folders, target, live))
        except comm.PrivsepTimeout as error:
            raise TimeoutError(f"sending the instance's data took too long: {error}") from error

    return write


def adopt_drive(data_root: str, instance_uuid: str, move: Move, folder: str) -> None:
    """Move the staged config drive to its directory. Idempotent."""
    staging.adopt_folder(data_root, instance_uuid, move.token, len(move.volumes) + 1, folder)


def adopt(data_root: str, instance_uuid: str, move: Move, storage: Storage, resumed: bool) -> None:
    """Replace the data of a container that has not been started yet by the staged data.

    :param resumed: whether some of the data may be in the container already
    :raises ResizeRefused: the container has other volumes than the one on the source, or there is
        no staged data
    :raises OSError: the data cannot be moved
    """
    if sorted(storage.volumes) != sorted(move.volumes):
        raise exception.ResizeRefused(reason="The image has other volumes than on the source host")
    folders = [storage.upper, *(storage.volumes[path] for path in move.volumes)]
    for number, folder in enumerate(folders):
        adopted = staging.adopt_folder(data_root, instance_uuid, move.token, number, folder)
        if not adopted and not resumed:
            raise exception.ResizeRefused(
                reason="The staged data of the move does not exist on this host"
            )


def discard(data_root: str, instance_uuid: str) -> None:
    """Delete the staged data of an instance. Does nothing if there is none."""
    staging.discard_folders(data_root, instance_uuid)
