# SPDX-License-Identifier: Apache-2.0
"""The rescue of an instance, from Nova's request to the running stand-in."""

from __future__ import annotations

import contextlib
from dataclasses import asdict

from nova import context as nova_context
from nova import objects
from nova.network import model as network_model

from novadocker import exception
from novadocker.virt.docker.containers import rescue
from novadocker.virt.docker.guest import identity
from novadocker.virt.docker.operations.build import Build
from novadocker.virt.docker.operations.ports import Ports, etc_files
from novadocker.virt.docker.operations.power import Power
from novadocker.virt.docker.operations.services import Services
from novadocker.virt.docker.operations.volumes import BlockDevices
from novadocker.virt.docker.volumes.volume import root_of


class Rescue:
    """Begins and ends the rescues of the instances of one host."""

    def __init__(self, services: Services, ports: Ports, power: Power, build: Build) -> None:
        self._services = services
        self._ports = ports
        self._power = power
        self._build = build

    def check_possible(self, block_devices: BlockDevices) -> None:
        """Refuse the rescue of an instance that boots from a volume.

        :raises RescueRefused: it does
        """
        if root_of(block_devices) is not None:
            raise exception.RescueRefused(
                reason="The Docker driver does not rescue servers that boot from a volume; attach "
                "a clone of the volume to another server"
            )

    def begin(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        image_meta: objects.ImageMeta,
        password: str,
    ) -> None:
        """Run a stand-in of another image, with the instance's files at ``/rescue``.

        :raises RescueRefused: the files of the instance cannot be mounted
        """
        self._services.rescue_ends.end(instance.uuid)
        own = self._services.find(instance)
        container = rescue.stand_in(
            self._build.planned(context, instance, image_meta),
            self._services.engine.inspect_storage(own.id),
            instance.uuid,
        )
        login = identity.login(instance, image_meta, password)
        self._power.stop(instance, 0)
        with contextlib.ExitStack() as undo:
            undo.callback(self._services.rescue_ends.end, instance.uuid)
            rescue.set_aside(self._services.engine, instance.uuid, own)
            rescue.prepare(self._services.engine, instance.uuid)
            # If the answer is lost, the container is not left to the sweep: the server's own
            # container may have the name by then.
            container_id = self._services.engine.create_container(container)
            self._ports.wire(instance, network_info)
            self._services.runtime.bind_container(
                container_id,
                instance.uuid,
                etc_files=etc_files(instance, network_info),
                login=asdict(login) if login else None,
            )
            self._services.lxcfs.await_mended()
            self._power.start_first(instance, container_id, network_info)
            undo.pop_all()

    def end(self, instance: objects.Instance) -> None:
        """Delete the stand-in and start the instance's own container."""
        self._power.stop_present(instance, 0)
        self._services.rescue_ends.end(instance.uuid)
        ports = instance.get_network_info() or network_model.NetworkInfo()
        self._power.start(self._services.find(instance), instance, ports)
