# SPDX-License-Identifier: Apache-2.0
"""What the operations use of the modules below them; mypy compares the unit tests' fakes with it.

The modules and classes that implement a Protocol document its functions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol

from nova import context as nova_context
from nova import objects
from nova.network import model as network_model

from novadocker.virt.docker.containers.protocols import ContainerEngine
from novadocker.virt.docker.events import EventSource
from novadocker.virt.docker.guest.console import Opener
from novadocker.virt.docker.images.archive import ArchivedImage
from novadocker.virt.docker.migration.disk_info import Move
from novadocker.virt.docker.migration.nova_records import CutOffEvent
from novadocker.virt.docker.migration.transports.transport import Transport
from novadocker.virt.docker.model import (
    ContainerDetail,
    ContainerSpec,
    EngineImage,
    EngineInfo,
    Limits,
    Mount,
    Storage,
    Usage,
)
from novadocker.virt.docker.volumes.volume import Volume


class Engine(ContainerEngine, EventSource, Protocol):
    """The engine's client."""

    def info(self) -> EngineInfo:
        """Return the facts of the engine and its host."""

    def claim(self, info: EngineInfo) -> None:
        """Claim the engine, so that no other nova-compute can use it."""

    def release(self) -> None:
        """Allow another nova-compute to claim the engine."""

    def create_container(self, spec: ContainerSpec) -> str:
        """Create a container; return its id."""

    def put_files(self, container: str, files: Mapping[str, bytes]) -> None:
        """Write files into a container."""

    def read_file(self, container: str, path: str) -> bytes | None:
        """Return the content of a plain file in a container."""

    def export_container(self, container: str) -> Iterator[bytes]:
        """Yield a tar archive of a container's files."""

    def read_usage(self, container: str) -> Usage:
        """Return the counters of a running container."""

    def inspect_image(self, name: str) -> EngineImage:
        """Return an image by name or id."""


class Network(Protocol):
    """The VIFs of an instance; ``network.vif``."""

    def initialize(self) -> None:
        """Load the plugins of os-vif."""

    def find_vifs(self, instance_uuid: str) -> network_model.NetworkInfo:
        """Return the VIFs of an instance that the switch has."""

    def check_supported(self, network_info: network_model.NetworkInfo) -> None:
        """Refuse VIFs that this host cannot wire."""

    def plug_vifs(
        self,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        keep_own: bool = False,
    ) -> None:
        """Wire all VIFs of an instance."""

    def plugged_vifs(
        self,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        *,
        prepare: Callable[[], None],
    ) -> AbstractContextManager[None]:
        """Prepare and wire all VIFs of an instance while a block runs."""

    def complete_routes(
        self, instance: objects.Instance, network_info: network_model.NetworkInfo
    ) -> None:
        """Add the route to the metadata service, if a network lacked its DHCP server before."""

    def replug_vifs(
        self, instance: objects.Instance, network_info: network_model.NetworkInfo
    ) -> None:
        """Insert an instance's ports into the switch again."""

    def silence_vifs(
        self, instance: objects.Instance, network_info: network_model.NetworkInfo
    ) -> None:
        """Set the VIFs of an instance down."""

    def announce_vifs(
        self, instance: objects.Instance, network_info: network_model.NetworkInfo
    ) -> None:
        """Send the MAC addresses of an instance's addresses to its neighbours."""

    def unplug_vifs(
        self, instance: objects.Instance, network_info: Iterable[network_model.VIF]
    ) -> None:
        """Delete VIFs of an instance."""


class Neutron(Protocol):
    """The ports in Neutron; ``network.neutron``."""

    def bound_ports(self, host: str, /) -> Mapping[str, Set[str]]:
        """Return the ports of a host by instance UUID."""

    def active_ports(self, instance: objects.Instance, host: str, /) -> Set[str]:
        """Return the ports of an instance that are up on a host."""

    def refresh_ports(
        self, context: nova_context.RequestContext, instance: objects.Instance, /
    ) -> network_model.NetworkInfo:
        """Write Neutron's ports of an instance into Nova's cache; return them."""


class Namespaces(Protocol):
    """Network namespaces as root; ``privsep.network.namespace``."""

    def create_owned_namespace(
        self,
        instance_uuid: str,
        users: Sequence[tuple[int, int, int]],
        groups: Sequence[tuple[int, int, int]],
    ) -> None:
        """Create an instance's network namespace in a user namespace."""


class Runtime(Protocol):
    """The files that the OCI runtime reads when a container starts; ``privsep.guest.runtime``."""

    def bind_container(
        self,
        container_id: str,
        instance_uuid: str,
        etc_files: Mapping[str, bytes] | None = None,
        login: Mapping[str, object] | None = None,
    ) -> None:
        """Start the container in the instance's network namespace from now on."""

    def release_container(self, container_id: str) -> None:
        """Delete the files of a container."""

    def create_own_namespace(self, instance_uuid: str, first_id: int, id_count: int) -> None:
        """Create an instance's network namespace in a user namespace with ids of its own."""

    def leave_own_namespace(self, instance_uuid: str) -> None:
        """Delete an instance's namespaces if it has ids of its own and does not run."""

    def has_own_ids(self, instance_uuid: str) -> bool:
        """Return True if an instance has a user namespace with ids of its own."""

    def delete_namespace(self, instance_uuid: str) -> None:
        """Delete an instance's network namespace and the files of its containers."""


class VolumeConnector(Protocol):
    """The connections of this host to volumes; ``volumes.connector``."""

    def connector_properties(self, host: str) -> dict[str, Any]:
        """Return what Cinder needs to know of this host."""

    def connect(self, volume: Volume) -> Mapping[str, Any]:
        """Connect a volume; return os-brick's description."""

    def disconnect(self, volume: Volume) -> None:
        """Disconnect a volume."""

    def extend(self, volume: Volume) -> int:
        """Make the host see the new size of a volume; return the size in bytes."""


class VolumeDevices(Protocol):
    """The devices of volumes in instances as root; ``privsep.guest.volumes``."""

    def holds(self, instance_uuid: str, volume_id: str) -> bool:
        """Return True if it is recorded that an instance has a volume."""

    def hold(self, instance_uuid: str, device: dict[str, Any]) -> None:
        """Record that an instance has a volume."""

    def release(self, instance_uuid: str, volume_id: str) -> bool:
        """Record that an instance has a volume no more; return False if another one has it."""

    def forget(self, instance_uuid: str) -> None:
        """Delete what is recorded of an instance's volumes."""

    def give(self, instance_uuid: str, volume_id: str, container_id: str, pid: int) -> None:
        """Give a volume to a running container."""

    def take(self, instance_uuid: str, volume_id: str, container_id: str, pid: int) -> str:
        """Take a volume from a running container; return what has it open, if anything."""


class RootVolumes(Protocol):
    """The volumes that instances boot from, as root; ``privsep.guest.root_volumes``."""

    def boots_from_volume(self, instance_uuid: str) -> bool:
        """Return True if it is recorded that an instance boots from a volume."""

    def examine(
        self, instance_uuid: str, image_id: str | None, checksum: str, length: int
    ) -> tuple[str, int]:
        """Return what is on the volume that an instance boots from, and its size in bytes."""

    def fill(self, instance_uuid: str, image_id: str, pipe: tuple[int, int]) -> None:
        """Make a file system on the volume, and unpack an archive in it."""

    def complete(self, instance_uuid: str, image_id: str) -> None:
        """Remove the mark of a fill from the volume."""

    def prepare(self, instance_uuid: str) -> None:
        """Check the volume's file system, and make it as large as the volume."""


class Drives(Protocol):
    """Config drives as root; ``privsep.guest.config_drive``."""

    def folder(self, host: str, instance_uuid: str) -> str:
        """Return the directory of an instance's config drive."""

    def files_folder(self, host: str, instance_uuid: str) -> str:
        """Return the directory of the files of an instance's config drive."""

    def device_link(self, instance_uuid: str) -> str:
        """Return the link to the device of an instance's config drive."""

    def list_drives(self, host: str) -> Iterable[str]:
        """Return the UUIDs of the instances that have a config drive."""

    def write_drive(
        self,
        host: str,
        instance_uuid: str,
        files: Mapping[str, bytes],
        owner: tuple[int, int],
        image: bytes,
    ) -> None:
        """Write a config drive."""

    def attach_device(self, host: str, instance_uuid: str) -> None:
        """Attach the loop device of a config drive."""

    def detach_device(self, host: str, instance_uuid: str) -> None:
        """Detach the loop device of a config drive."""

    def delete_drive(self, host: str, instance_uuid: str) -> None:
        """Delete a config drive."""


class Checkpoints(Protocol):
    """The memory of suspended instances on the disk, as root; ``privsep.guest.checkpoint``."""

    def exists(self, host: str, instance_uuid: str) -> bool:
        """Return True if an instance has images."""

    def list_instances(self, host: str) -> Iterable[str]:
        """Return the UUIDs of the instances that have images."""

    def why_impossible(self, program: str) -> str:
        """Return why CRIU can't work; empty if it can."""

    def dump(
        self,
        host: str,
        instance_uuid: str,
        container_id: str,
        pid: int,
        started_at: str,
        program: str,
    ) -> None:
        """Write the memory of a frozen container."""

    def end_processes(self, host: str, instance_uuid: str, container_id: str) -> bool:
        """Kill the processes of a frozen container whose memory is written."""

    def has_ended_processes(
        self, host: str, instance_uuid: str, container_id: str, started_at: str
    ) -> bool:
        """Return True if ``end_processes`` has begun to kill processes that are not restored."""

    def restore_next(
        self, host: str, instance_uuid: str, container_id: str, started_at: str, program: str
    ) -> bool:
        """Make the next start of a container restore its memory; return False without one."""

    def discard(self, host: str, instance_uuid: str) -> None:
        """Delete the images of an instance."""


class GuestFiles(Protocol):
    """Files in a running container as root; ``privsep.guest.files``."""

    def set_password(
        self, container_id: str, pid: int, user: str, password_hash: str, day: int
    ) -> bool:
        """Set a user's password; return False if the container has no such account."""

    def read_etc_file(self, container_id: str, pid: int, name: str) -> bytes | None:
        """Return the content of a file in /etc; None if it does not exist."""

    def put_etc_file(self, container_id: str, pid: int, name: str, content: bytes) -> None:
        """Replace a file in /etc."""


class Session(Protocol):
    """The transfer of one server; ``migration.transfer.Session``."""

    def send_ahead(self) -> None:
        """Send the data while the server runs."""

    def send(self, live: bool) -> float:
        """Send the data that changed; return the seconds it took."""

    def commit(self) -> None:
        """Commit the move."""


class Transfer(Protocol):
    """The data of a move; ``migration.transfer``."""

    def session(
        self,
        command: Sequence[str],
        host: str,
        transport: Transport,
        instance_uuid: str,
        image_id: str,
        storage: Storage,
        drive: str,
    ) -> AbstractContextManager[tuple[Session, Move]]:
        """Open a session with the destination."""

    def adopt_drive(self, data_root: str, instance_uuid: str, move: Move, folder: str) -> None:
        """Move the received config drive into place."""

    def adopt(
        self, data_root: str, instance_uuid: str, move: Move, storage: Storage, resumed: bool
    ) -> None:
        """Move the received data into a container."""

    def discard(self, data_root: str, instance_uuid: str) -> None:
        """Delete received data."""


class NovaRecords(Protocol):
    """Nova's records of moves in its database; ``migration.nova_records``."""

    def deleted(self, uuids: Collection[str]) -> Iterable[objects.Instance]:
        """Return those of the instances that are deleted."""

    def gone(self, uuids: Collection[str], host: str) -> Set[str]:
        """Return the ids of those of the instances that are deleted or live on another host."""

    def cut_off(
        self, host: str, events: Mapping[str, tuple[str, str]]
    ) -> Iterable[objects.Instance]:
        """Return the instances of a host in whose operation nova-compute died."""

    def cut_off_events(
        self, instance_uuid: str, host: str, actions: Collection[str] | None = None
    ) -> tuple[CutOffEvent, ...]:
        """Return the events of an instance's last action that a host began and did not end."""

    def end_event(self, event: CutOffEvent, failure: str | None) -> None:
        """Record the result of an event in which nova-compute died."""

    def note(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        event: str,
        text: str,
    ) -> None:
        """Tell the tenant something, in an event of the present action."""

    def ports_since(self, instance_uuid: str, start_time: datetime) -> Set[str]:
        """Return the ids of the ports that Nova has begun to allocate since a time."""

    def save(self, instance: objects.Instance, task: str) -> bool:
        """Save an instance unless its task has changed."""

    def resume_cut_off(self, host: str) -> None:
        """Continue the confirmations and reverts during which nova-compute died."""

    def is_reverted_here(self, instance: objects.Instance) -> bool:
        """Return True if a resize is reverted to the container that Nova wants destroyed."""

    def take_back(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        migration: objects.Migration,
    ) -> None:
        """Record that an instance has not left this host."""

    def set_finished(self, instance: objects.Instance) -> None:
        """Record that a move to this host is finished."""


class Background(Protocol):
    """A thread beside the operations."""

    def start(self) -> None:
        """Start the thread."""

    def stop(self) -> None:
        """Stop the thread."""


class ServiceStatus(Protocol):
    """The status of the service nova-compute; ``host.service_status.ServiceStatus``."""

    def start(self, host: str) -> None:
        """Start the thread."""

    def stop(self) -> None:
        """Stop the thread."""

    def report(self, problem: str | None) -> None:
        """Report whether the engine answers, and otherwise the reason."""


class Lxcfs(Background, Protocol):
    """The files of lxcfs in containers; ``guest.lxcfs.Lxcfs``."""

    def look(self) -> float:
        """Check lxcfs now; return the argument of ``mounts``."""

    def mounts(self, instance_uuid: str, asked: float) -> tuple[Mount, ...]:
        """Return the mounts of a new container."""

    def await_mended(self) -> None:
        """Wait, within bounds, while lxcfs is broken."""


class LoadAverages(Background, Protocol):
    """The load averages of servers; ``guest.load_average.Loads``."""

    def delete(self, instance_uuid: str) -> None:
        """Delete the file of a server."""


class Backups(Background, Protocol):
    """The copies of servers in the registry; ``migration.backup.Backups``."""

    def fetch(self, instance_uuid: str, data_root: str) -> Move | None:
        """Fetch the last copy of a server."""

    def remove(self, instance_uuid: str) -> None:
        """Delete the copy of a server."""


class Consoles(Protocol):
    """The serial consoles; ``guest.console.Consoles``."""

    def open(self, instance_uuid: str, container_id: str, opener: Opener) -> int:
        """Return the port of a server's console."""

    def close(self, instance_uuid: str) -> None:
        """Close a server's console."""

    def stop(self) -> None:
        """Close all consoles."""


class Enforcement(Protocol):
    """The limits of servers; ``limits.enforcement.Enforcement``."""

    @property
    def resizes_disks(self) -> bool:
        """True if the size of a disk can change."""

    def check_possible(self, limits: Limits) -> None:
        """Check that this host can enforce limits."""

    def enforce(
        self,
        instance_uuid: str,
        found: ContainerDetail,
        limits: Limits,
        devices: tuple[tuple[str, str], ...],
    ) -> None:
        """Set the limits of a server and of its ports."""

    def limit_container(
        self,
        instance_uuid: str,
        found: ContainerDetail,
        limits: Limits,
        devices: tuple[tuple[str, str], ...],
    ) -> None:
        """Set the limits of a server."""

    def limit_ports(
        self, instance_uuid: str, limits: Limits, devices: tuple[tuple[str, str], ...]
    ) -> None:
        """Set the rates of a server's ports."""

    def memory_in_use(self, found: ContainerDetail) -> int:
        """Return the bytes of memory that a server uses."""

    def disk_in_use(self, found: ContainerDetail) -> int:
        """Return the bytes of its disk that a server uses."""

    def resize_disk(self, found: ContainerDetail, size: int) -> None:
        """Set the size of a server's disk."""

    def sweep(self) -> None:
        """Set the limits again that were lost."""


class Images(Protocol):
    """The images in the engine; ``images.store.ImageStore``."""

    def ensure(
        self,
        context: nova_context.RequestContext,
        image_meta: objects.ImageMeta,
        trusted: objects.TrustedCerts | None = None,
        most: int = 0,
    ) -> EngineImage:
        """Load an image into the engine unless it is there."""

    def describe(self, context: nova_context.RequestContext, image_id: str) -> objects.ImageMeta:
        """Return Nova's record of an image."""

    def ensure_empty(self) -> EngineImage:
        """Load an image without files into the engine unless it is there."""

    def cache(self, context: nova_context.RequestContext, image_id: str) -> bool:
        """Load an image; return True if it was not in the engine."""

    def snapshot(self, container: ContainerDetail) -> AbstractContextManager[ArchivedImage]:
        """Create an image of a container."""

    def upload(
        self, context: nova_context.RequestContext, image_id: str, image: ArchivedImage
    ) -> None:
        """Upload an image to Glance."""


class CutOffImages(Protocol):
    """The images of snapshots during which nova-compute died; ``images.cut_off.CutOffImages``."""

    def add(self, instance: objects.Instance) -> None:
        """Let ``sweep`` delete the images of an instance's snapshots."""

    def sweep(self) -> None:
        """Delete the images."""


class ImageCache(Protocol):
    """The image cache; ``images.cache.ImageCache``."""

    def update(
        self, context: nova_context.RequestContext, all_instances: Iterable[objects.Instance]
    ) -> None:
        """Delete unused images."""


OpenTerminal = Callable[[str, str | None], Opener]
"""Returns the function that opens a container's console of a kind; ``console.terminal_opener``."""
