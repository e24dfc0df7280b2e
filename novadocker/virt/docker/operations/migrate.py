# SPDX-License-Identifier: Apache-2.0
"""The move of an instance to another host, or from another host."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.compute import task_states
from nova.network import model as network_model
from oslo_log import log as logging

from novadocker import exception, privsep
from novadocker.conf import CONF
from novadocker.virt.docker.containers import servers
from novadocker.virt.docker.images import empty
from novadocker.virt.docker.limits import flavor as flavor_limits
from novadocker.virt.docker.migration import nova_records
from novadocker.virt.docker.migration.disk_info import Move, read_move
from novadocker.virt.docker.model import ContainerDetail
from novadocker.virt.docker.operations.build import Build
from novadocker.virt.docker.operations.config_drive import ConfigDrive
from novadocker.virt.docker.operations.ports import Ports
from novadocker.virt.docker.operations.power import Power
from novadocker.virt.docker.operations.resize import Resize
from novadocker.virt.docker.operations.services import Services
from novadocker.virt.docker.operations.volumes import BlockDevices, Volumes

LOG = logging.getLogger(__name__)


class Migrate:
    """Sends instances of this host to other hosts and receives those of other hosts."""

    def __init__(
        self,
        services: Services,
        ports: Ports,
        power: Power,
        config_drive: ConfigDrive,
        build: Build,
        resize: Resize,
        volumes: Volumes,
    ) -> None:
        self._services = services
        self._ports = ports
        self._power = power
        self._config_drive = config_drive
        self._build = build
        self._resize = resize
        self._volumes = volumes

    def send(
        self,
        instance: objects.Instance,
        dest: str,
        network_info: network_model.NetworkInfo,
        block_devices: BlockDevices,
        timeout: float,
    ) -> Move:
        """Send an instance's data to a host and stop it; its container stays until confirmation.

        Disconnects the volumes, which the other host connects.

        :raises RanMeanwhile: something started the instance while its data was sent
        """
        found = self._services.find(instance)
        running = not servers.has_ended(found)
        storage = self._services.engine.inspect_storage(found.id)
        with contextlib.ExitStack() as undo:
            with self._services.transfer.session(
                CONF.docker.transfer_command,
                dest,
                self._services.transport(instance.uuid),
                instance.uuid,
                found.image_id,
                storage,
                self._config_drive.directory(instance),
            ) as (session, move):
                if running:
                    session.send_ahead()
                    undo.callback(self._power.start, found, instance, network_info)
                self._power.stop(instance, timeout)
                undo.callback(self._volumes.connect, instance, block_devices)
                self._volumes.disconnect(instance, block_devices)
                stopped = self._services.find(instance)
                session.send(live=False)
                sent = self._services.find(instance)
                if not servers.has_ended(sent) or sent.finished_at != stopped.finished_at:
                    raise exception.RanMeanwhile(name=found.name)
                session.commit()
            self._ports.unwire(instance, network_info)
            undo.pop_all()
        return move

    def arrive(
        self,
        instance: objects.Instance,
        move: Move,
        network_info: network_model.NetworkInfo,
        image_meta: objects.ImageMeta,
        block_devices: BlockDevices,
        power_on: bool,
    ) -> None:
        """Create an instance of the data that another host sent; that host keeps its own data.

        A failure keeps the instance's data here, so that ``find_whole`` can finish the move.
        """
        self._services.arrivals.begin(instance.uuid, move.to_text())
        self._volumes.connect(instance, block_devices)
        plugged = self._ports.plugged_again(instance, network_info)
        self._take_in(instance, move, network_info, image_meta, power_on, plugged)

    def find_whole(
        self,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
    ) -> ContainerDetail:
        """Return the instance's container; finish an interrupted move to this host first."""
        text = self._services.arrivals.get(instance.uuid)
        move = read_move(text) if text is not None else None
        if move is not None:
            LOG.info("Finishing the interrupted move to this host", instance=instance)
            # Neutron's events do not arrive while nova-compute starts, so nothing waits for them.
            wired = self._ports.wired(instance, network_info)
            self._take_in(instance, move, network_info, instance.image_meta, False, wired)
        return self._services.find(instance)

    def finish_cut_off(
        self, instance: objects.Instance, network_info: network_model.NetworkInfo
    ) -> None:
        """Finish ``finish_migration`` and its caller's work, during which nova-compute died."""
        try:
            found = self.find_whole(instance, network_info)
            if nova_records.runs_after(instance) and servers.has_ended(found):
                block_devices = self._services.read_block_devices(
                    nova_context.get_admin_context(), instance
                )
                self._volumes.connect(instance, block_devices)
                self._power.start(found, instance, network_info)
                # nova-compute wires the ports next and sets down the ports of servers that are not
                # listed as running, so the list is read again.
                self._services.server_list.servers()
            self._services.nova_records.set_finished(instance)
        except (nova_exception.NovaException, OSError, *privsep.UNANSWERED) as error:
            # nova-compute calls this for every instance when it starts and would not start after an
            # exception.
            LOG.error("Failed to finish the move to this host: %s", error, instance=instance)

    def finish_revert(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        migration: objects.Migration,
        block_devices: BlockDevices,
        power_on: bool,
    ) -> None:
        """Set the limits of the old flavor, or start the instance that had moved away."""
        if migration.cross_cell_move:
            self._build.bring_back(instance)
        found = self._services.find(instance)
        self._volumes.connect(instance, block_devices)
        if not nova_records.is_to_other_host(migration):
            self._resize.revert(found, instance, network_info)
            found = self._services.find(instance)
            if power_on and servers.has_ended(found):
                # The instance was stopped because a volume was in use.
                self._power.start(found, instance, network_info)
        elif power_on:
            self._come_back(found, instance, network_info)
        self._services.nova_records.take_back(context, instance, migration)

    def evacuate(
        self,
        instance: objects.Instance,
        image_meta: objects.ImageMeta,
        injected_files: Sequence[tuple[str, bytes]],
        admin_password: str | None,
        network_info: network_model.NetworkInfo | None,
        detach_volumes: Callable[[], None],
        attach_volumes: Callable[[], BlockDevices],
    ) -> None:
        """Create an instance of its last backup. A failure leaves nothing on this host.

        :param detach_volumes: ends the attachments of the volumes to the host that died
        :param attach_volumes: attaches the volumes to this host and returns the block devices
        :raises NotImplementedError: there is no backup; Nova's manager must rebuild the instance
        """
        move = self._services.backups.fetch(instance.uuid, self._services.data_root)
        if move is None:
            raise NotImplementedError
        ports = network_info if network_info is not None else network_model.NetworkInfo()
        with contextlib.ExitStack() as undo:
            undo.callback(self._services.transfer.discard, self._services.data_root, instance.uuid)
            detach_volumes()
            instance.task_state = task_states.REBUILD_BLOCK_DEVICE_MAPPING
            instance.save(expected_task_state=[task_states.REBUILDING])
            block_devices = attach_volumes()
            instance.task_state = task_states.REBUILD_SPAWNING
            instance.save(expected_task_state=[task_states.REBUILD_BLOCK_DEVICE_MAPPING])
            undo.callback(self._build.remove, instance, ports, block_devices)
            self._config_drive.write(instance, ports, injected_files, admin_password)
            # Nova has claimed CPUs of this host, and records them when the server runs.
            with instance.mutated_migration_context():
                self.arrive(instance, move, ports, image_meta, block_devices, True)
            undo.pop_all()

    def clean_up(self, instance: objects.Instance) -> None:
        """Delete the data of a deleted instance whose move between two hosts was interrupted."""
        ports = instance.get_network_info() or network_model.NetworkInfo()
        self._build.remove(instance, ports)
        self._services.transfer.discard(self._services.data_root, instance.uuid)

    def restore(self, instance: objects.Instance, ports: network_model.NetworkInfo) -> None:
        """Finish an interrupted move to this host when nova-compute starts, and wire the ports.

        Does nothing for an instance that is still to arrive.
        """
        if self.is_expected(instance):
            return
        if nova_records.is_cut_off(instance):
            self.finish_cut_off(instance, ports)
        self._ports.restore(instance, ports)

    def is_expected(self, instance: objects.Instance) -> bool:
        """Return True if an instance has left another host and is to arrive at this host.

        Nova calls ``finish_migration`` for it when nova-compute has started. Neutron binds its
        ports to this host only then, and reports a port that is plugged before only once.
        """
        return (
            nova_records.is_on_its_way(instance)
            and instance.uuid not in self._services.server_list.recent_servers()
        )

    def _come_back(
        self,
        found: ContainerDetail,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
    ) -> None:
        """Wire and start an instance whose move is reverted. Does nothing if it runs."""
        if servers.has_ended(found):
            with self._ports.plugged_again(instance, network_info):
                pass
            self._power.start(found, instance, network_info)

    def _take_in(
        self,
        instance: objects.Instance,
        move: Move,
        network_info: network_model.NetworkInfo,
        image_meta: objects.ImageMeta,
        power_on: bool,
        wired: contextlib.AbstractContextManager[None],
    ) -> None:
        """Create an instance of the received data.

        :param wired: wires its ports while the block runs
        """
        services = self._services
        most = flavor_limits.instance_limits(instance, services.rules(instance))
        services.enforcement.check_possible(most)
        with contextlib.ExitStack() as undo:
            undo.callback(self._ports.unwire, instance, network_info)
            try:
                container_id, resumed = services.find(instance).id, True
            except exception.ContainerLost:
                container_id, resumed = self._create(instance, move, image_meta), False
            storage = services.engine.inspect_storage(container_id)
            services.transfer.adopt(services.data_root, instance.uuid, move, storage, resumed)
            services.arrivals.end(instance.uuid)
            services.transfer.discard(services.data_root, instance.uuid)
            with wired:
                pass
            services.runtime.bind_container(container_id, instance.uuid)
            if power_on:
                self._power.start_first(instance, container_id, network_info)
            else:
                services.network.silence_vifs(instance, network_info)
            undo.pop_all()

    def _create(self, instance: objects.Instance, move: Move, image_meta: objects.ImageMeta) -> str:
        services = self._services
        if move.drive:
            drive = self._config_drive.directory(instance)
            if not drive:
                raise exception.ResizeRefused(
                    reason="The source host sent a config drive, but the server has none"
                )
            services.transfer.adopt_drive(services.data_root, instance.uuid, move, drive)
        if not image_meta.obj_attr_is_set("id"):
            # Nova knows none of an instance that boots from a volume.
            image_meta = objects.ImageMeta(id=empty.ID, properties=image_meta.properties)
        image = services.engine.inspect_image(move.image_id)
        asked = services.lxcfs.look()
        container = self._build.container_spec(instance, image_meta, image, asked)
        services.abandoned.sweep()
        # If the answer is lost, the container is not left to the sweep: it may have the data.
        return services.engine.create_container(container)
