# SPDX-License-Identifier: Apache-2.0
"""A rescue: a container of another image stands in for the server's own container.

The stand-in has the server's root file system at ``/rescue``. It also has the name of the server's
container, so Nova's requests for the server apply to the stand-in. The server's own container is
stopped and has another name, under which it is not listed as a server. Only the deletion of the
server deletes it.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from oslo_log import log as logging

from novadocker import exception, naming
from novadocker.privsep.storage import overlay_names
from novadocker.virt.docker.containers.pending import Pending
from novadocker.virt.docker.containers.protocols import ContainerEngine
from novadocker.virt.docker.engine.connection import PATIENCE
from novadocker.virt.docker.model import (
    Container,
    ContainerDetail,
    ContainerSpec,
    Mount,
    Overlay,
    Storage,
)

LOG = logging.getLogger(__name__)

DIRECTORY = "/rescue"
"""The mount point of the server's root file system in the stand-in."""

# mount(2): a page less the zero byte at the end
_LONGEST_OPTIONS = 4095


def stand_in(container: ContainerSpec, storage: Storage, instance_uuid: str) -> ContainerSpec:
    """Return the specification of a stand-in that has a server's files at ``/rescue``.

    :param container: the specification of a container of the rescue image
    :param storage: the directories of the server's own container
    :raises RescueRefused: an overlay cannot be mounted on the files of the server
    """
    if storage.driver != "overlay2":
        raise exception.RescueRefused(
            reason=f"The engine's storage driver is {storage.driver}; a rescue needs overlay2"
        )
    directories = _directories(storage)
    options = _options(directories)
    if len(options) > _LONGEST_OPTIONS:
        options = _options(overlay_names.names(instance_uuid, len(directories)))
    if len(options) > _LONGEST_OPTIONS:
        raise exception.RescueRefused(
            reason=f"The server's image has {len(storage.lowers)} layers, too many for a rescue"
        )
    volumes = tuple(
        Mount(directory, f"{DIRECTORY}{path}", writable=True)
        for path, directory in storage.volumes.items()
    )
    return replace(
        container,
        labels={**container.labels, naming.LABEL_RESCUE: "1"},
        mounts=container.mounts + volumes,
        overlays=(Overlay(options, DIRECTORY),),
    )


def prepare(engine: ContainerEngine, instance_uuid: str) -> None:
    """Create the short names of the overlay's directories if the stand-in needs them. Idempotent.

    They are lost when the host reboots, so this function must run before each start.

    :raises ContainerNotFound: the server's own container does not exist
    :raises RescueRefused: another server of this host has the same short names
    """
    directories = _directories(engine.inspect_storage(_aside(instance_uuid)))
    if len(_options(directories)) > _LONGEST_OPTIONS:
        try:
            overlay_names.make(instance_uuid, directories)
        except FileExistsError as error:
            raise exception.RescueRefused(reason=str(error)) from error


def is_stand_in(found: Container | ContainerDetail) -> bool:
    """Return True if a container is the stand-in of a rescue."""
    return found.labels.get(naming.LABEL_RESCUE) == "1"


def set_aside(engine: ContainerEngine, instance_uuid: str, found: ContainerDetail) -> None:
    """Rename a server's stopped container to its name during a rescue."""
    engine.rename_container(found.id, _aside(instance_uuid))


def put_back(engine: ContainerEngine, instance_uuid: str) -> str:
    """Delete the stand-in and rename the server's own container back.

    Does nothing if the server is not rescued.

    :returns: the id of the deleted stand-in; empty if there was none
    :raises ContainerNotFound: the server's own container does not exist; the stand-in is kept
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
    """Ends rescues, at once or when the engine answers again.

    After a restart of nova-compute, ``put_back_left`` finds the servers concerned.

    :param release: deletes the files of a deleted stand-in; takes its container's id
    """

    def __init__(self, engine: ContainerEngine, release: Callable[[str], None]) -> None:
        self._engine = engine
        self._release = release
        self._pending = Pending(self._end, "Failed to end the rescue of instance")

    def end(self, instance_uuid: str) -> None:
        """End a server's rescue; if the engine fails, ``sweep`` tries again.

        Does nothing if the server is not rescued.

        :raises ContainerNotFound: the server's own container does not exist; the stand-in is kept
        """
        self._pending.send(instance_uuid)

    def sweep(self) -> None:
        """End the rescues that ``end`` could not end.

        :raises EngineUnavailable: the engine does not answer
        """
        with self._engine.within(PATIENCE):
            self._pending.sweep()

    def _end(self, instance_uuid: str) -> None:
        if stand_in_id := put_back(self._engine, instance_uuid):
            self._release(stand_in_id)


def remove(engine: ContainerEngine, instance_uuid: str) -> None:
    """Delete the own container of a server in rescue. Does nothing if it does not exist."""
    engine.remove_container(_aside(instance_uuid))
    overlay_names.remove(instance_uuid)


def put_back_left(engine: ContainerEngine) -> None:
    """Rename the containers of servers whose rescue nova-compute began and did not finish.

    nova-compute was killed after it had renamed the server's container and before it had created
    the stand-in. Deletes unused overlays, too: an engine that was killed during a rescue considers
    the overlay mounted until the next start of the engine, and keeps it.
    """
    engine.remove_unused_overlays()
    found = engine.list_containers(naming.SERVER_FILTER)
    names = {container.name for container in found}
    for container in found:
        instance_uuid = container.labels.get(naming.LABEL_UUID, "")
        name = naming.container_name(instance_uuid)
        if container.name == _aside(instance_uuid) and name not in names:
            LOG.warning(
                "Ending the unfinished rescue of container %s", name, instance_uuid=instance_uuid
            )
            try:
                engine.rename_container(container.id, name)
            except exception.EngineError as error:
                LOG.warning(
                    "Failed to end the unfinished rescue of container %s: %s",
                    name,
                    error,
                    instance_uuid=instance_uuid,
                )


def _directories(storage: Storage) -> list[str]:
    return [storage.upper, storage.work, *storage.lowers]


def _options(directories: Sequence[str]) -> str:
    upper, work, *lowers = directories
    # The engine mounts overlays without an index and cannot mount one that has had an index.
    return f"lowerdir={':'.join(lowers)},upperdir={upper},workdir={work},index=off"


def _aside(instance_uuid: str) -> str:
    return naming.container_name(instance_uuid) + naming.ASIDE
