# SPDX-License-Identifier: Apache-2.0
"""A server's data to another host: the bulk while it runs, the difference when it does not.

A command, ssh unless the operator says otherwise, starts ``novadocker-receive`` on the other host.
The two exchange lines of JSON; between them come the streams of ``trees``. The other host keeps
nothing unless the last line says that all is there.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from oslo_log import log as logging

from novadocker import exception
from novadocker.virt.docker import staging
from novadocker.virt.docker.model import Storage

LOG = logging.getLogger(__name__)

VERSION = 1
# the other host may have to start its privileged helper
_ANSWER_SECONDS = 120.0
# to write gigabytes to a slow disk
_APPLY_SECONDS = 1800.0
_LAST_WORDS = 2000


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

    :raises ResizeRefused: the other host speaks of something that this one does not know
    """
    fields = json.loads(text)
    if fields["same_host"]:
        return None
    if fields["version"] != VERSION:
        raise exception.ResizeRefused(
            reason="The source host has another release of the driver, which can't be understood"
        )
    return Move(**fields)


class Session:
    """Sends a server's folders to one host."""

    def __init__(self, process: subprocess.Popen[bytes], token: str, folders: list[str]) -> None:
        self._process = process
        self._token = token
        self._folders = folders

    def send(self, live: bool) -> None:
        """Send everything, then what changed since it was sent.

        :param live: whether the server runs; then a call without it must follow
        :raises ResizeRefused: it can't be sent or kept
        """
        assert self._process.stdin is not None
        begin = time.monotonic()
        self._tell({"apply": True})
        try:
            sent = staging.send_folders(
                self._token, self._folders, (os.getpid(), self._process.stdin.fileno()), live
            )
        except OSError as error:
            raise self._refusal(error) from error
        self._expect("applied", _APPLY_SECONDS)
        seconds = time.monotonic() - begin
        LOG.info("Sent %.1f MiB in %.2f s%s", sent / 2**20, seconds, ", live" if live else "")

    def commit(self) -> None:
        """Have the other host keep what was sent.

        :raises ResizeRefused: it does not say so
        """
        self._tell({"commit": True})
        self._expect("kept", _APPLY_SECONDS)

    def begin(self, greeting: Mapping[str, Any]) -> bool:
        """Wait until the other host is ready; tell whether it has the image.

        :raises ResizeRefused: it is not, and says why
        """
        self._tell(greeting)
        return bool(self._expect("ready", _ANSWER_SECONDS)["image"])

    def send_image(self, chunks: Iterable[bytes]) -> None:
        """Send an image that the other host lacks, as the engine saves it.

        :raises ResizeRefused: it can't be sent, or the other engine refuses it
        """
        assert self._process.stdin is not None
        for chunk in chunks:
            self._tell({"bytes": len(chunk)})
            try:
                view = memoryview(chunk)
                while view:
                    view = view[self._process.stdin.write(view) or 0 :]
            except OSError as error:
                raise self._refusal(error) from error
        self._tell({"bytes": 0})
        self._expect("loaded", _APPLY_SECONDS)

    def _tell(self, fields: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(fields).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._refusal(error) from error

    def _expect(self, word: str, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        # select() takes no descriptor from 1024 on
        answers = select.poll()
        answers.register(self._process.stdout, select.POLLIN)
        ready = answers.poll(seconds * 1000)
        line = self._process.stdout.readline() if ready else b""
        try:
            answer = json.loads(line)
        except ValueError:
            raise self._refusal("it does not answer") from None
        if word not in answer:
            raise exception.ResizeRefused(
                reason=f"The destination host refuses the server: {answer.get('refused')}"
            )
        return dict(answer)

    def _refusal(self, what: object) -> exception.ResizeRefused:
        """Return the error, with what the command says of its end."""
        self._process.kill()
        assert self._process.stderr is not None
        words = self._process.stderr.read(_LAST_WORDS).decode(errors="replace").strip()
        LOG.error("The command that sends a server's data ended: %s", words or what)
        last = words.splitlines()[-1] if words else str(what)
        return exception.ResizeRefused(
            reason=f"The server's data could not be sent to the destination host: {last}"
        )


@contextmanager
def session(
    command: Sequence[str],
    host: str,
    instance_uuid: str,
    image_id: str,
    save: Callable[[str], Iterable[bytes]],
    storage: Storage,
    drive: str,
) -> Iterator[tuple[Session, Move]]:
    """Talk to a host that is to take a server; what it does not keep it removes.

    It has the server's image when this returns.

    :param command: with ``{host}`` for the address
    :param save: yields an image's archive
    :param drive: the folder of the server's config drive, if it has one
    :returns: also what the destination must be told by Nova
    :raises ResizeRefused: the host is not reached, or refuses
    """
    if storage.driver != "overlay2":
        raise exception.ResizeRefused(
            reason=f"The engine's storage driver is {storage.driver}; a server moves with overlay2"
        )
    token = secrets.token_hex(16)
    volumes = sorted(storage.volumes)
    folders = [storage.upper, *(storage.volumes[path] for path in volumes), *filter(None, [drive])]
    try:
        process = subprocess.Popen(
            [word.format(host=host) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # an answer is not to be read ahead of
            bufsize=0,
        )
    except OSError as error:
        raise exception.ResizeRefused(reason=f"{command[0]} can't be run: {error}") from error
    try:
        found = Session(process, token, folders)
        greeting = {"version": VERSION, "uuid": instance_uuid, "token": token, "image": image_id}
        if not found.begin(greeting):
            LOG.info("The destination has no image %s: sending it", image_id)
            found.send_image(save(image_id))
        yield found, Move(token, image_id, volumes, bool(drive))
    finally:
        staging.forget_folders(token)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        # on the end of its input the other side ends
        try:
            process.wait(_ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def adopt_drive(data_root: str, instance_uuid: str, move: Move, folder: str) -> None:
    """Make the config drive that was sent this host's own."""
    staging.adopt_folder(data_root, instance_uuid, move.token, len(move.volumes) + 1, folder)


def adopt(data_root: str, instance_uuid: str, move: Move, storage: Storage) -> None:
    """Make what was sent the data of a container that has not been started yet.

    :raises ResizeRefused: the container has other volumes than the one that it was
    """
    if sorted(storage.volumes) != sorted(move.volumes):
        raise exception.ResizeRefused(reason="The image has other volumes than on the source host")
    folders = [storage.upper, *(storage.volumes[path] for path in move.volumes)]
    for number, folder in enumerate(folders):
        staging.adopt_folder(data_root, instance_uuid, move.token, number, folder)
    staging.discard_folders(data_root, instance_uuid)


def discard(data_root: str, instance_uuid: str) -> None:
    """Remove what was sent of a server and not made its own; nothing is fine."""
    staging.discard_folders(data_root, instance_uuid)
