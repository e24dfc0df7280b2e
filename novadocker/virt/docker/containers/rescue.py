# SPDX-License-Identifier: Apache-2.0
"""A rescue: a container of another image stands in for a server's own, whose files it can mend.

The stand-in has the server's name, so whatever Nova asks of the server is done to it. The server's
own container lies stopped under another name, by which nothing takes it for a server; only the
server's deletion removes it.
"""

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from oslo_log import log as logging

from novadocker import exception, naming
from novadocker.privsep.storage import overlay_names
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.model import (
    ContainerDetail,
    ContainerSpec,
    Mount,
    Overlay,
    Storage,
)

LOG = logging.getLogger(__name__)

FOLDER = "/rescue"
"""Where the stand-in has the server's root file system."""

# mount(2): a page, with the zero at its end
_LONGEST_OPTIONS = 4095


def stand_in(container: ContainerSpec, storage: Storage, instance_uuid: str) -> ContainerSpec:
    """Return a container as one that has another's files at ``/rescue``.

    :raises RescueRefused: the engine keeps the files in a way that can't be mounted
    """
    if storage.driver != "overlay2":
        raise exception.RescueRefused(
            reason=f"The engine's storage driver is {storage.driver}; a rescue needs overlay2"
        )
    folders = _folders(storage)
    options = _options(folders)
    if len(options) > _LONGEST_OPTIONS:
        options = _options(overlay_names.names(instance_uuid, len(folders)))
    if len(options) > _LONGEST_OPTIONS:
        raise exception.RescueRefused(
            reason=f"The server's image has {len(storage.lowers)} layers, too many for a rescue"
        )
    volumes = tuple(
        Mount(folder, f"{FOLDER}{path}", writable=True) for path, folder in storage.volumes.items()
    )
    return replace(
        container,
        labels={**container.labels, naming.LABEL_RESCUE: "1"},
        mounts=container.mounts + volumes,
        overlays=(Overlay(options, FOLDER),),
    )


def prepare(engine: Engine, instance_uuid: str) -> None:
    """Have what a start of the stand-in needs; a reboot of the host takes it away.

    :raises ContainerNotFound: the own container is gone
    :raises RescueRefused: another server of this host is in the way
    """
    folders = _folders(engine.inspect_storage(_aside(instance_uuid)))
    if len(_options(folders)) > _LONGEST_OPTIONS:
        try:
            overlay_names.make(instance_uuid, folders)
        except FileExistsError as error:
            raise exception.RescueRefused(reason=str(error)) from error


def is_stand_in(found: ContainerDetail) -> bool:
    """Tell whether a container stands in for a server's own."""
    return found.labels.get(naming.LABEL_RESCUE) == "1"


def set_aside(engine: Engine, instance_uuid: str, found: ContainerDetail) -> None:
    """Give a server's own container, which does not run, the name it has during a rescue."""
    engine.rename_container(found.id, _aside(instance_uuid))


def put_back(engine: Engine, instance_uuid: str) -> str:
    """End a rescue: the stand-in goes, the server's own container gets its name back.

    A server that is not rescued is left alone.

    :returns: the id of the stand-in; empty if there was none
    :raises ContainerNotFound: the own container is gone; the stand-in is left alone
    """
    name = naming.container_name(instance_uuid)
    stand_in_id = ""
    with contextlib.suppress(exception.ContainerNotFound):
        found = engine.inspect_container(name)
        if not is_stand_in(found):
            return ""
        stand_in_id = found.id
    own = engine.inspect_container(_aside(instance_uuid))
    if stand_in_id:
        engine.remove_container(stand_in_id)
        overlay_names.remove(instance_uuid)
        engine.remove_unused_overlays()
    engine.rename_container(own.id, name)
    return stand_in_id


class RescueEnds:
    """Ends rescues, at once or when the engine is back.

    What a restart of nova-compute forgets, ``put_back_left`` finds.

    :param release: takes the id of each stand-in that is gone
    """

    def __init__(self, engine: Engine, release: Callable[[str], None]) -> None:
        self._engine = engine
        self._release = release
        self._lock = threading.Lock()
        self._left: set[str] = set()

    def end(self, instance_uuid: str) -> None:
        """End a server's rescue, if it has one; ``sweep`` tries again where the engine can't.

        :raises ContainerNotFound: the own container is gone; the stand-in is left alone
        """
        with self._lock:
            self._left.add(instance_uuid)
            self._end(instance_uuid)

    def sweep(self) -> None:
        """End what could not be ended.

        :raises EngineUnavailable: the engine is away again
        """
        with self._lock:
            for instance_uuid in list(self._left):
                try:
                    self._end(instance_uuid)
                except exception.ContainerNotFound:
                    # the server is gone
                    self._left.discard(instance_uuid)
                except exception.EngineError as error:
                    LOG.warning("The rescue of server %s does not end: %s", instance_uuid, error)

    def _end(self, instance_uuid: str) -> None:
        gone = put_back(self._engine, instance_uuid)
        if gone:
            self._release(gone)
        self._left.discard(instance_uuid)


def remove(engine: Engine, instance_uuid: str) -> None:
    """Remove the own container of a server that is deleted during a rescue; absent is fine."""
    engine.remove_container(_aside(instance_uuid))
    overlay_names.remove(instance_uuid)


def put_back_left(engine: Engine) -> None:
    """Give every container its name back that lost it in a rescue which never came to be.

    nova-compute was killed between two of its requests. An engine that was killed during a rescue
    takes the overlay for mounted until its next start, and keeps it: what is left goes, too.
    """
    engine.remove_unused_overlays()
    found = engine.list_containers(f"{naming.LABEL_SCHEMA}={naming.SCHEMA}")
    names = {container.name for container in found}
    for container in found:
        instance_uuid = container.labels.get(naming.LABEL_UUID, "")
        name = naming.container_name(instance_uuid)
        if container.name == _aside(instance_uuid) and name not in names:
            LOG.warning("%s was left aside by a rescue, and is put back", name)
            engine.rename_container(container.id, name)


def _folders(storage: Storage) -> list[str]:
    return [storage.upper, storage.work, *storage.lowers]


def _options(folders: Sequence[str]) -> str:
    upper, work, *lowers = folders
    # without an index, as the engine itself mounts them, or it could not any more
    return f"lowerdir={':'.join(lowers)},upperdir={upper},workdir={work},index=off"


def _aside(instance_uuid: str) -> str:
    return naming.container_name(instance_uuid) + naming.ASIDE
