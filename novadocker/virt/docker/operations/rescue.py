# SPDX-License-Identifier: Apache-2.0
"""An instance's rescue, from Nova's request to the stand-in that runs."""

from __future__ import annotations

import contextlib
from dataclasses import asdict

from nova import context as nova_context
from nova import objects
from nova.network import model as network_model

from novadocker.privsep.guest import runtime
from novadocker.virt.docker.containers import rescue
from novadocker.virt.docker.guest import identity
from novadocker.virt.docker.operations.build import Builds
from novadocker.virt.docker.operations.ports import Ports, etc_files
from novadocker.virt.docker.operations.power import Power
from novadocker.virt.docker.operations.services import Node


class Rescues:
    """The rescues of the instances of one host."""

    def __init__(self, node: Node, ports: Ports, power: Power, builds: Builds) -> None:
        self._node = node
        self._ports = ports
        self._power = power
        self._builds = builds

    def begin(
        self,
        context: nova_context.RequestContext,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        image_meta: objects.ImageMeta,
        password: str,
    ) -> None:
        """Run another image in an instance's place, which has its files at ``/rescue``.

        :raises RescueRefused: its files can't be mounted
        """
        self._node.rescue_ends.end(instance.uuid)
        own = self._node.find(instance)
        container = rescue.stand_in(
            self._builds.planned(context, instance, image_meta),
            self._node.engine.inspect_storage(own.id),
            instance.uuid,
        )
        login = identity.login(instance, image_meta, password)
        self._power.stop(instance, 0, 0)
        with contextlib.ExitStack() as undo:
            undo.callback(self._node.rescue_ends.end, instance.uuid)
            rescue.set_aside(self._node.engine, instance.uuid, own)
            rescue.prepare(self._node.engine, instance.uuid)
            # when the answer is lost, what has the name later may be the own one: none is suspect
            container_id = self._node.engine.create_container(container)
            self._ports.wire(instance, network_info)
            runtime.bind_container(
                container_id,
                instance.uuid,
                etc_files=etc_files(instance, network_info),
                login=login and asdict(login),
            )
            self._node.lxcfs.await_mended()
            self._power.start_first(instance, container_id, network_info)
            undo.pop_all()

    def end(self, instance: objects.Instance) -> None:
        """Start an instance's own container again, in the place of the one for its rescue."""
        self._power.stop(instance, 0, 0)
        self._node.rescue_ends.end(instance.uuid)
        ports = instance.get_network_info() or network_model.NetworkInfo()
        self._power.start(self._node.find(instance), instance, ports)
