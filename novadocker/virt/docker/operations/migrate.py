# SPDX-License-Identifier: Apache-2.0
"""An instance that goes to another host, or comes from one."""

from __future__ import annotations

import contextlib

from nova import exception as nova_exception
from nova import objects
from nova.network import model as network_model
from oslo_log import log as logging

from novadocker.conf import CONF
from novadocker.privsep.guest import runtime
from novadocker.virt.docker.containers import servers
from novadocker.virt.docker.limits import flavor as flavor_limits
from novadocker.virt.docker.migration import nova_records, transfer, transport
from novadocker.virt.docker.model import ContainerDetail
from novadocker.virt.docker.network import vif
from novadocker.virt.docker.operations.build import Builds
from novadocker.virt.docker.operations.config_drive import ConfigDrives
from novadocker.virt.docker.operations.ports import Ports
from novadocker.virt.docker.operations.power import Power
from novadocker.virt.docker.operations.services import Node

LOG = logging.getLogger(__name__)


class Relocations:
    """Sends instances of this host away and takes in those of others."""

    def __init__(
        self,
        node: Node,
        ports: Ports,
        power: Power,
        config_drives: ConfigDrives,
        builds: Builds,
    ) -> None:
        self._node = node
        self._ports = ports
        self._power = power
        self._drives = config_drives
        self._builds = builds

    def send(
        self,
        instance: objects.Instance,
        dest: str,
        network_info: network_model.NetworkInfo,
        timeout: float,
        retry_interval: float,
    ) -> transfer.Move:
        """Send an instance's data to a host and stop it; it stays here until that is confirmed."""
        found = self._node.find(instance)
        running = not servers.has_ended(found)
        storage = self._node.engine.inspect_storage(found.id)
        with contextlib.ExitStack() as undo:
            with transfer.session(
                CONF.docker.transfer_command,
                dest,
                transport.way(self._node.engine, instance.uuid),
                instance.uuid,
                found.image_id,
                storage,
                self._drives.folder(instance),
            ) as (session, move):
                if running:
                    session.send_ahead()
                    undo.callback(self._power.start, found, instance, network_info)
                self._power.stop(instance, timeout, retry_interval)
                session.send(live=False)
                session.commit()
            self._ports.unwire(instance, network_info)
            undo.pop_all()
        return move

    def arrive(
        self,
        instance: objects.Instance,
        move: transfer.Move,
        network_info: network_model.NetworkInfo,
        image_meta: objects.ImageMeta,
        power_on: bool,
    ) -> None:
        """Make an instance of what another host sent; that one keeps its own for now.

        What fails keeps what there is of the instance here, and can be done again.
        """
        self._node.arrivals.begin(instance.uuid, move.to_text())
        plugged = self._ports.plugged(instance, network_info)
        self._take_in(instance, move, network_info, image_meta, power_on, plugged)

    def find_whole(
        self,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
    ) -> ContainerDetail:
        """Return the instance's container, after an arrival that was cut off is finished."""
        said = self._node.arrivals.get(instance.uuid)
        move = transfer.read_move(said) if said is not None else None
        if move is not None:
            LOG.info("Its arrival from another host was cut off: finishing it", instance=instance)
            # without a wait for Neutron's word, which can't come while nova-compute starts
            wired = self._ports.wired(instance, network_info)
            self._take_in(instance, move, network_info, instance.image_meta, False, wired)
        return self._node.find(instance)

    def finish_cut_off(
        self, instance: objects.Instance, network_info: network_model.NetworkInfo
    ) -> None:
        """Do what ``finish_migration`` had not done when nova-compute died, and its caller."""
        try:
            found = self.find_whole(instance, network_info)
            if nova_records.runs_after(instance) and servers.has_ended(found):
                self._power.start(found, instance, network_info)
                # what plugs its ports next must not take it for stopped
                self._node.listing.servers()
            nova_records.set_finished(instance)
        except (nova_exception.NovaException, OSError) as error:
            # Nova asks for every server when it starts, and would stop at this one
            LOG.error("Its move to this host is not finished: %s", error, instance=instance)

    def come_back(
        self,
        found: ContainerDetail,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
    ) -> None:
        """Start an instance whose move to another host is reverted; one that runs is left alone."""
        if servers.has_ended(found):
            with self._ports.plugged(instance, network_info):
                pass
            self._power.start(found, instance, network_info)

    def _take_in(
        self,
        instance: objects.Instance,
        move: transfer.Move,
        network_info: network_model.NetworkInfo,
        image_meta: objects.ImageMeta,
        power_on: bool,
        wired: contextlib.AbstractContextManager[None],
    ) -> None:
        """Make an instance of what has come.

        :param wired: wires its ports
        """
        node = self._node
        node.enforcement.check_possible(flavor_limits.instance_limits(instance, node.rules()))
        with contextlib.ExitStack() as undo:
            undo.callback(self._ports.unwire, instance, network_info)
            try:
                container_id, resumed = node.find(instance).id, True
            except nova_exception.InstanceNotFound:
                container_id, resumed = self._create(instance, move, image_meta), False
            storage = node.engine.inspect_storage(container_id)
            transfer.adopt(node.data_root, instance.uuid, move, storage, resumed)
            node.arrivals.end(instance.uuid)
            transfer.discard(node.data_root, instance.uuid)
            with wired:
                runtime.bind_container(container_id, instance.uuid)
            if power_on:
                self._power.start_first(instance, container_id, network_info)
            else:
                vif.silence_vifs(instance, network_info)
            undo.pop_all()

    def _create(
        self, instance: objects.Instance, move: transfer.Move, image_meta: objects.ImageMeta
    ) -> str:
        node = self._node
        if move.drive:
            drive = self._drives.folder(instance)
            transfer.adopt_drive(node.data_root, instance.uuid, move, drive)
        image = node.engine.inspect_image(move.image_id)
        asked = node.lxcfs.look()
        container = self._builds.container_spec(instance, image_meta, image, asked)
        node.abandoned.sweep()
        # when the answer is lost, what has the name later has the data: none is suspect
        return node.engine.create_container(container)
