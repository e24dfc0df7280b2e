# SPDX-License-Identifier: Apache-2.0
"""The services that all operations of one host share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from pathlib import Path

import oslo_messaging
from nova import exception as nova_exception
from nova import objects
from oslo_concurrency import processutils
from oslo_log import log as logging

from novadocker import exception, extra_specs, naming, privsep
from novadocker.conf import CONF
from novadocker.virt.docker.containers import freeze, rescue
from novadocker.virt.docker.containers.cleanup import AbandonedContainers
from novadocker.virt.docker.containers.rescue import RescueEnds
from novadocker.virt.docker.host import filesystem, topology
from novadocker.virt.docker.host.build_failures import BuildFailures
from novadocker.virt.docker.host.user_namespaces import UserNamespaces
from novadocker.virt.docker.limits import disk
from novadocker.virt.docker.limits import flavor as flavor_limits
from novadocker.virt.docker.migration.incoming import IncomingMoves
from novadocker.virt.docker.migration.transports import registry
from novadocker.virt.docker.model import OVERLAYFS, ContainerDetail, EngineInfo
from novadocker.virt.docker.operations import interrupted
from novadocker.virt.docker.operations.collaborators import Collaborators

LOG = logging.getLogger(__name__)


class Services:
    """The services of one compute node; the facts that ``open`` reads do not change afterwards.

    Only a trial that failed is made again.

    :ivar name: the name of the node and of the host
    :ivar sized_disks: True if the size of a server's disk can be limited
    :ivar id_maps: the host's users and groups of servers; None without ``userns-remap``
    :ivar user_namespaces: the user namespaces of servers
    :ivar arrivals: the unfinished moves to this host
    """

    def __init__(self, collaborators: Collaborators) -> None:
        """Create the services. Sends no request to the engine."""
        self._collaborators = collaborators
        self.name = str(CONF.host)
        self.engine = collaborators.engine
        self.server_list = collaborators.server_list
        self.network = collaborators.network
        self.neutron = collaborators.neutron
        self.namespaces = collaborators.namespaces
        self.marked_networks = collaborators.marked_networks
        self.instances_with_disks = collaborators.instances_with_disks
        self.device_metadata = collaborators.device_metadata
        self.read_instance = collaborators.read_instance
        self.runtime = collaborators.runtime
        self.guest_files = collaborators.guest_files
        self.build_config_drive = collaborators.build_config_drive
        self.drives = collaborators.drives
        self.checkpoints = collaborators.checkpoints
        self.volume_connector = collaborators.volume_connector
        self.volume_devices = collaborators.volume_devices
        self.root_volumes = collaborators.root_volumes
        self.read_volume_image = collaborators.read_volume_image
        self.read_block_devices = collaborators.read_block_devices
        self.open_terminal = collaborators.open_terminal
        self.lxcfs = collaborators.lxcfs
        self.load_averages = collaborators.load_averages
        self.user_budgets = collaborators.user_budgets
        self.image_cache = collaborators.image_cache
        self.image_owners = collaborators.image_owners
        self.cut_off_images = collaborators.cut_off_images
        self.transfer = collaborators.transfer
        self.transport = collaborators.transport
        self.backups = collaborators.backups
        self.nova_records = collaborators.nova_records
        self.read_resources = collaborators.read_resources
        self._deleting: threading.Thread | None = None
        self._thaws = freeze.thaw_failures()
        self._trial = threading.Lock()
        self.build_failures = BuildFailures()
        self.abandoned = AbandonedContainers(self.engine)
        self.rescue_ends = RescueEnds(self.engine, self.runtime.release_container)
        self.arrivals = IncomingMoves(Path(CONF.state_path) / "arrivals")

    def open(self, host: str) -> None:
        """Claim the engine, check this host, and finish what an earlier nova-compute left undone.

        :raises EngineUnavailable: the engine does not answer
        :raises InvalidConfiguration: the runtime shim is not registered, containerd keeps the
            engine's images, another nova-compute uses the engine, or the registry's client is
            missing
        """
        registry.check_client()
        self.name = host
        info = self.engine.info()
        self.engine.claim(info)
        _check_runtime(info)
        _check_store(info)
        self._check_hidden(info)
        if not info.live_restore:
            LOG.warning(
                "All servers stop when the engine stops, because live-restore is off; set it in "
                "daemon.json"
            )
        self.id_maps = self._collaborators.read_id_maps(info)
        self._info = info
        self.user_namespaces = self._collaborators.read_user_namespaces(info)
        self.cells = self._collaborators.read_cells()
        self.cpu_sets = topology.cpu_sets(self.cells)
        self.sized_disks = filesystem.can_size_disks(info)
        if not self.sized_disks:
            LOG.warning("A server can fill the disk of this host, because its size is not limited")
        self.enforcement = self._collaborators.enforcement(info)
        self.data_root = info.data_root
        self._storage_driver = info.storage_driver
        self.images = self._collaborators.images(info)
        self.consoles = self._collaborators.consoles()
        freeze.thaw_left(self.engine, Path(CONF.instances_path))
        rescue.put_back_left(self.engine)
        self._collaborators.clear_transports()
        self.nova_records.resume_cut_off(host)
        interrupted.end(
            self.nova_records,
            host,
            self.server_list.recent_servers,
            self.cut_off_images.add,
            self._has_saved_memory,
        )
        self.network.initialize()

    def _has_saved_memory(self, instance_uuid: str, container_id: str) -> bool:
        """Return True if the memory of a container's last run is whole and on the disk."""
        found = self.engine.inspect_container(container_id)
        return self.checkpoints.has_ended_processes(
            self.name, instance_uuid, found.id, found.last_start
        )

    def start(self) -> None:
        """Start the threads that run beside the operations."""
        self.lxcfs.start()
        self.load_averages.start()
        self.user_budgets.start()
        self.backups.start()

    def close(self) -> None:
        """Stop the threads, close all consoles, and release the engine."""
        self.consoles.stop()
        self.lxcfs.stop()
        self.load_averages.stop()
        self.user_budgets.stop()
        self.backups.stop()
        self.engine.release()

    def info(self) -> EngineInfo:
        """Return the properties of the engine for the report of the host's resources.

        If the engine has another storage driver than at the start, it may hide servers. Then the
        report disables the host and repeats nothing. Requests about one server do not look: they
        fail, and a deletion leaves the hidden container, which Nova deletes when it is shown again.

        :raises EngineUnavailable: the engine does not answer
        :raises InvalidConfiguration: the engine has another storage driver
        """
        found = self.engine.info()
        if found.storage_driver != self._storage_driver:
            self._check_hidden(found)
        return found

    def _check_hidden(self, info: EngineInfo) -> None:
        """Check that the engine shows the containers of all servers that Nova has here.

        :raises EngineUnavailable: the engine does not answer
        :raises InvalidConfiguration: it hides those of another storage driver
        """
        try:
            found = self._collaborators.hidden_servers(info)
        except (OSError, *privsep.UNANSWERED) as error:
            LOG.warning("Failed to look for servers of another storage driver: %s", error)
            return
        if not found:
            return
        others = self.server_list.servers().keys() | self.gone(found.keys())
        hidden = {uuid: former for uuid, former in found.items() if uuid not in others}
        if hidden:
            instance_uuid, former = min(hidden.items())
            raise exception.InvalidConfiguration(
                reason=f"the engine now uses the storage driver {info.storage_driver} and hides "
                f"{len(hidden)} servers of the storage driver {former}, such as {instance_uuid}; "
                f"nothing of them is lost: {_setting(former)} in daemon.json and restart the "
                "engine; if they are not needed, delete their containers there (docker rm) and "
                "change the storage driver again"
            )

    def gone(self, uuids: Collection[str]) -> Set[str]:
        """Return the ids of those of the instances that Nova has deleted or has elsewhere.

        Returns none if Nova does not answer.
        """
        try:
            return self.nova_records.gone(uuids, self.name)
        except (nova_exception.NovaException, oslo_messaging.MessagingException) as error:
            LOG.warning("Failed to read the hosts of %d instances: %s", len(uuids), error)
            return frozenset()

    def sweep(self, info: EngineInfo, further: Mapping[str, Callable[[], None]]) -> None:
        """Repeat what failed while the engine was down, and set limits again that were lost.

        Nova's periodic ``update_available_resource`` calls this, at first when nova-compute starts.
        Each step runs even if another step fails.

        :param further: more steps, by the name of the action in the log
        """
        directory = Path(CONF.instances_path)
        steps: dict[str, Callable[[], None]] = {
            "remove the containers of failed builds": self.abandoned.sweep,
            "end rescues": self.rescue_ends.sweep,
            "thaw frozen servers": lambda: freeze.thaw_given_up(
                self.engine, directory, self._thaws
            ),
            "keep the limits of disks": lambda: disk.restore_quotas(info),
            "keep the limits of servers": self.enforcement.sweep,
            "start to delete images": self._start_deleting_cut_off_images,
            **further,
        }
        for action, step in steps.items():
            _take_step(action, step)

    def _start_deleting_cut_off_images(self) -> None:
        """Start a thread that deletes the images of interrupted snapshots, unless one runs.

        Nova waits for Glance without a bound by default ([glance] timeout), and holds its lock of
        the host's resources during a sweep.
        """
        if self._deleting is None or not self._deleting.is_alive():
            self._deleting = threading.Thread(
                target=_take_step,
                args=("delete the images of interrupted snapshots", self.cut_off_images.sweep),
                name="cut-off-images",
                daemon=True,
            )
            self._deleting.start()

    def remains(self) -> Set[str]:
        """Return the UUIDs of the instances that have something on this host, but no container.

        A container that an operator deletes leaves the network, the config drive and the links to
        disks.

        :raises EngineUnavailable: the engine does not answer
        """
        found: set[str] = set()
        kinds: dict[str, Callable[[], Iterable[str]]] = {
            "networks": self.marked_networks,
            "disks": self.instances_with_disks,
            "config drives": lambda: self.drives.list_drives(self.name),
            "saved memories": lambda: self.checkpoints.list_instances(self.name),
        }
        for kind, read in kinds.items():
            try:
                found.update(read())
            except (OSError, *privsep.UNANSWERED) as error:
                LOG.warning("Failed to list the %s of this host: %s", kind, error)
        # A container is listed last, because it is created after its network and its config drive,
        # and after its volumes are connected.
        return found - self.server_list.servers().keys()

    def find(self, instance: objects.Instance) -> ContainerDetail:
        """Return the instance's container.

        :raises ContainerLost: there is no such container, or the driver did not create it
        """
        name = naming.container_name(instance.uuid)
        try:
            found = self.engine.inspect_container(name)
        except exception.ContainerNotFound as error:
            raise exception.ContainerLost(name=name) from error
        if not naming.owned(found.name, found.labels):
            raise exception.ContainerLost(name=name)
        return found

    def look_up(self, instance: objects.Instance) -> ContainerDetail:
        """Return the instance's container for a request that changes nothing.

        :raises InstanceNotFound: Nova's API answers that the instance is not found
        """
        try:
            return self.find(instance)
        except exception.ContainerLost as error:
            raise nova_exception.InstanceNotFound(instance_id=instance.uuid) from error

    def try_user_namespaces(self) -> UserNamespaces:
        """Return the user namespaces of servers. Tries this host once more if a trial failed."""
        with self._trial:
            if self.user_namespaces.trial.failure:
                self.user_namespaces = self._collaborators.read_user_namespaces(self._info)
            return self.user_namespaces

    def own_user_namespace(self, instance: objects.Instance) -> bool:
        """Return True if an instance gets a user namespace of its own when it starts.

        :raises InvalidLimits: an extra spec of the instance is malformed
        """
        asked = flavor_limits.asked(instance, instance.flavor, self.rules(instance))
        return self.user_namespaces.of_server(asked.get(extra_specs.USERNS.name))

    def has_user_namespace(self, instance: objects.Instance) -> bool:
        """Return True if an instance has other ids than the host, its own or the engine's.

        :raises InvalidLimits: an extra spec of the instance is malformed
        """
        return self.id_maps is not None or self.own_user_namespace(instance)

    def rules(self, instance: objects.Instance) -> flavor_limits.Rules:
        """Return the rules for the extra specs of an instance's flavor and image on this host.

        The disk of an instance that boots from a volume has the size of the volume.
        """
        return flavor_limits.rules(
            self.cells,
            self.cpu_sets,
            pids=CONF.docker.default_pids_limit,
            sized_disks=self.sized_disks and not self.root_volumes.boots_from_volume(instance.uuid),
            image_may_ask=CONF.docker.image_extra_specs,
        )


def _take_step(action: str, step: Callable[[], None]) -> None:
    try:
        step()
    except (
        nova_exception.NovaException,
        oslo_messaging.MessagingException,
        processutils.ProcessExecutionError,
        OSError,
        *privsep.UNANSWERED,
    ) as error:
        LOG.warning("Failed to %s: %s", action, error)


def _check_runtime(info: EngineInfo) -> None:
    if CONF.docker.runtime not in info.runtimes:
        raise exception.InvalidConfiguration(
            reason=f"the engine has no runtime {CONF.docker.runtime!r}; register the shim "
            "under 'runtimes' in daemon.json and reload the engine"
        )


def _setting(driver: str) -> str:
    """Return what to do in daemon.json for a storage driver."""
    if driver == OVERLAYFS:
        return 'set "features": {"containerd-snapshotter": true} and remove "storage-driver"'
    return f'set "storage-driver": "{driver}" and "features": {{"containerd-snapshotter": false}}'


def _check_store(info: EngineInfo) -> None:
    if info.containerd_store and info.storage_driver != OVERLAYFS:
        raise exception.InvalidConfiguration(
            reason="the engine keeps its images in containerd's image store with the snapshotter "
            f"{info.storage_driver}, which the driver does not support; {_setting('overlay2')} in "
            "daemon.json and restart the engine"
        )
