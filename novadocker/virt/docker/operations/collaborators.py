# SPDX-License-Identifier: Apache-2.0
"""The modules and objects below the operations, as one value that a test can replace."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from nova import context as nova_context
from nova import objects
from nova.image import glance
from nova.network import model as network_model
from nova.virt import event as virtevent

from novadocker.conf import CONF
from novadocker.linux.namespaces import IdMaps
from novadocker.privsep.guest import checkpoint, root_volumes, runtime
from novadocker.privsep.guest import config_drive as drives
from novadocker.privsep.guest import files as guest_files
from novadocker.privsep.guest import user_namespaces as guest_user_namespaces
from novadocker.privsep.guest import volume_devices as disk_files
from novadocker.privsep.guest import volumes as volume_devices
from novadocker.privsep.network import namespace
from novadocker.privsep.storage import hidden, owners
from novadocker.state_files import namespaces as marked_namespaces
from novadocker.virt.docker.containers.servers import ServerList
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.events import Events, EventSource
from novadocker.virt.docker.guest import config_drive, console
from novadocker.virt.docker.guest.load_average import Loads
from novadocker.virt.docker.guest.lxcfs import Lxcfs
from novadocker.virt.docker.host import id_maps, resources, topology, user_namespaces
from novadocker.virt.docker.host.service_status import ServiceStatus
from novadocker.virt.docker.host.user_budgets import UserBudgets
from novadocker.virt.docker.host.user_namespaces import UserNamespaces
from novadocker.virt.docker.images import cut_off
from novadocker.virt.docker.images.cache import ImageCache
from novadocker.virt.docker.images.owners import Owners
from novadocker.virt.docker.images.store import ImageStore
from novadocker.virt.docker.limits.enforcement import Enforcement
from novadocker.virt.docker.migration import nova_records, transfer
from novadocker.virt.docker.migration.backup import Backups
from novadocker.virt.docker.migration.transports import choice
from novadocker.virt.docker.migration.transports.transport import Transport
from novadocker.virt.docker.model import EngineInfo
from novadocker.virt.docker.network import device_names, device_tags, neutron, vif
from novadocker.virt.docker.operations import protocols
from novadocker.virt.docker.volumes import cinder, connector, nova_mappings
from novadocker.virt.docker.volumes.root import VolumeImage


class BuildConfigDrive(Protocol):
    """Returns the files and the device's image of a config drive; ``guest.config_drive.build``."""

    def __call__(
        self,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        injected_files: Sequence[tuple[str, bytes]],
        admin_password: str | None,
        /,
    ) -> tuple[Mapping[str, bytes], bytes]:
        """Build the config drive of an instance."""


class DeviceMetadata(Protocol):
    """Returns the tagged devices of an instance; ``network.device_tags.device_metadata``."""

    def __call__(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        /,
    ) -> objects.InstanceDeviceMetadata:
        """Read the tags from Nova's database."""


class ReadInstance(Protocol):
    """Returns an instance as it is in Nova's database; ``network.device_names.read_instance``."""

    def __call__(
        self, context: nova_context.RequestContext, instance_uuid: str, /
    ) -> objects.Instance:
        """Read the instance."""


class ReadBlockDevices(Protocol):
    """Returns the block devices of an instance from Nova's database; ``nova_mappings.read``."""

    def __call__(
        self, context: nova_context.RequestContext, instance: objects.Instance, /
    ) -> dict[str, Any]:
        """Read the block device mappings."""


class ReadVolumeImage(Protocol):
    """Returns the image of which Cinder made a volume, if any; ``cinder.read_image``."""

    def __call__(
        self,
        context: nova_context.RequestContext,
        volume_id: str,
        properties: objects.ImageMetaProps,
        /,
    ) -> VolumeImage | None:
        """Read the record of the volume."""


class CreateEvents(Protocol):
    """Creates the threads that report events to Nova; ``events.Events``."""

    def __call__(
        self,
        engine: EventSource,
        listing: ServerList,
        emit: Callable[[virtevent.LifecycleEvent], None],
        killed: Callable[[str], None],
        answers: Callable[[str | None], None],
        rebooted: Callable[[str], None],
        gone: Callable[[Collection[str]], Set[str]],
        /,
    ) -> protocols.Background:
        """Create the threads without starting them."""


@dataclass(frozen=True, kw_only=True)
class Collaborators:
    """The modules and objects that the operations of one host use.

    :ivar marked_networks: returns the UUIDs of the instances that have a network of the driver here
    :ivar instances_with_disks: returns the UUIDs of the instances that have links to disks here
    :ivar create_service_status: creates the object for Nova's ``virtapi``
    :ivar hidden_servers: returns the storage driver of each server, by UUID, whose container the
        engine hides because it has another storage driver
    :ivar enforcement: creates the object for the engine that ``init_host`` found
    :ivar images: creates the object for the engine that ``init_host`` found
    :ivar image_cache: creates an object for one run of the image cache
    :ivar consoles: creates the object when ``init_host`` has found the engine
    :ivar transport: returns the transport of an instance's data to another host
    :ivar clear_transports: deletes what interrupted moves left in the registry
    """

    engine: protocols.Engine
    server_list: ServerList
    create_events: CreateEvents
    create_service_status: Callable[[Any], protocols.ServiceStatus]
    network: protocols.Network
    neutron: protocols.Neutron
    namespaces: protocols.Namespaces
    device_metadata: DeviceMetadata
    read_instance: ReadInstance
    marked_networks: Callable[[], Set[str]]
    instances_with_disks: Callable[[], Set[str]]
    runtime: protocols.Runtime
    guest_files: protocols.GuestFiles
    build_config_drive: BuildConfigDrive
    drives: protocols.Drives
    checkpoints: protocols.Checkpoints
    volume_connector: protocols.VolumeConnector
    volume_devices: protocols.VolumeDevices
    root_volumes: protocols.RootVolumes
    read_volume_image: ReadVolumeImage
    read_block_devices: ReadBlockDevices
    consoles: Callable[[], protocols.Consoles]
    open_terminal: protocols.OpenTerminal
    lxcfs: protocols.Lxcfs
    load_averages: protocols.LoadAverages
    user_budgets: protocols.Background
    enforcement: Callable[[EngineInfo], protocols.Enforcement]
    hidden_servers: Callable[[EngineInfo], Mapping[str, str]]
    images: Callable[[EngineInfo], protocols.Images]
    image_owners: Owners
    image_cache: Callable[[], protocols.ImageCache]
    cut_off_images: protocols.CutOffImages
    transfer: protocols.Transfer
    transport: Callable[[str], Transport]
    clear_transports: Callable[[], None]
    backups: protocols.Backups
    nova_records: protocols.NovaRecords
    read_cells: Callable[[], tuple[topology.Cell, ...]]
    read_id_maps: Callable[[EngineInfo], IdMaps | None]
    read_user_namespaces: Callable[[EngineInfo], UserNamespaces]
    read_resources: Callable[[EngineInfo, topology.CpuSets], resources.Resources]


def real_collaborators() -> Collaborators:
    """Return the real collaborators, by the options. Sends no request to the engine."""
    state = Path(CONF.state_path)
    engine = Engine.from_options(CONF.docker)
    servers = ServerList(engine)
    load_averages = Loads(state, engine, servers)
    return Collaborators(
        engine=engine,
        server_list=servers,
        create_events=Events,
        create_service_status=ServiceStatus,
        network=vif,
        neutron=neutron,
        namespaces=namespace,
        device_metadata=device_tags.device_metadata,
        read_instance=device_names.read_instance,
        marked_networks=marked_namespaces.marked,
        instances_with_disks=disk_files.instances,
        runtime=runtime,
        guest_files=guest_files,
        build_config_drive=config_drive.build,
        drives=drives,
        checkpoints=checkpoint,
        volume_connector=connector,
        volume_devices=volume_devices,
        root_volumes=root_volumes,
        read_volume_image=cinder.read_image,
        read_block_devices=nova_mappings.read,
        consoles=lambda: console.Consoles(
            engine,
            CONF.serial_console.proxyclient_address,
            console.parse_proxies(CONF.docker.serial_console_proxies),
            console.parse_users(CONF.docker.serial_console_users),
            CONF.consoleauth.token_ttl,
        ),
        open_terminal=partial(console.terminal_opener, engine),
        lxcfs=Lxcfs(CONF.docker.lxcfs_folder, engine, servers, load_averages),
        load_averages=load_averages,
        user_budgets=UserBudgets(state),
        enforcement=lambda info: Enforcement(engine, info, state),
        hidden_servers=lambda info: hidden.hidden_servers(info.data_root, info.storage_driver),
        images=lambda info: ImageStore(engine, resources.architecture(info)),
        image_owners=Owners(owners.find_above),
        image_cache=lambda: ImageCache(engine),
        cut_off_images=cut_off.CutOffImages(
            glance.API(), cut_off.service_user, state / "cut-off-images"
        ),
        transfer=transfer,
        transport=partial(choice.choose, engine),
        clear_transports=partial(choice.clear_leftovers, engine),
        backups=Backups(engine, servers, state / "copies"),
        nova_records=nova_records,
        read_cells=topology.read_cells,
        read_id_maps=id_maps.read_id_maps,
        read_user_namespaces=lambda info: user_namespaces.read(
            info,
            CONF.docker.user_namespaces,
            CONF.docker.user_namespace_ids,
            guest_user_namespaces.why_impossible,
        ),
        read_resources=resources.read_resources,
    )
