# SPDX-License-Identifier: Apache-2.0
"""Servers with a user namespace, of their own or the engine's."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import docker

from novadocker.privsep.guest import runtime
from novadocker.privsep.network import namespace
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.model import ContainerSpec
from tests.engine import remapping
from tests.engine.engines import OwnEngine
from tests.engine.machines import Machine

FIRST = 1_900_019_712
_SIZE = 65536


@contextmanager
def server(
    engine: OwnEngine, client: docker.APIClient, instance_uuid: str, spec: ContainerSpec
) -> Iterator[Machine]:
    """Run a server in a network namespace of its own, by the runtime shim.

    It has a user namespace of its own unless the engine remaps users.

    :param spec: the container, except for its name and its runtime
    """
    driver = Engine(engine.url, timeout=30, load_timeout=60)
    name = f"nova-{instance_uuid}"
    if driver.info().user_namespaces:
        ids = [(0, remapping.FIRST, _SIZE)]
        namespace.create_owned_namespace(instance_uuid, ids, ids)
    else:
        runtime.create_own_namespace(instance_uuid, FIRST, _SIZE)
    container = driver.create_container(replace(spec, name=name, runtime="novadocker"))
    try:
        runtime.bind_container(container, instance_uuid)
        driver.start_container(container)
        yield Machine(client, name, container, driver.inspect_container(container).pid)
    finally:
        driver.remove_container(container)
        runtime.delete_namespace(instance_uuid)
