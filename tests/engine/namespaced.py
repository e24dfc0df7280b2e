# SPDX-License-Identifier: Apache-2.0
"""Servers with a user namespace, of their own or the engine's."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import docker

from novadocker.privsep.guest import runtime
from novadocker.privsep.network import namespace
from novadocker.virt.docker.containers import rescue
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.model import ContainerSpec
from tests.engine import remapping
from tests.engine.engines import OwnEngine
from tests.engine.machines import Machine, describe, start

FIRST = 1_900_019_712
_SIZE = 65536


KINDS = ("own", "userns-remap")
"""Where a server's user namespace comes from: the driver, or the engine."""


@contextmanager
def engine_of_kind(
    kind: str, session_engine: OwnEngine, state_folder: Path, name: str
) -> Iterator[OwnEngine]:
    """Yield an engine whose servers can have a user namespace.

    :param kind: one of ``KINDS``
    :param session_engine: serves ``own``
    :param name: of the directory of an engine that remaps users
    """
    if kind == "own":
        yield session_engine
    else:
        with remapping.remapped_engine(state_folder, name) as found:
            yield found


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


def check_network(server: Machine) -> None:
    """Check that a server has its NIC of 10.7.0.5, and may not change it."""
    assert "10.7.0.5/24" in server.run("ip", "address", "show", "eth0")[1]
    assert server.run("ls", "/sys/class/net")[1].split() == ["eth0", "lo"]
    assert server.run("ping", "-c1", "-W2", "10.7.0.5")[0] == 0
    assert server.run("ip", "address", "add", "10.9.9.9/24", "dev", "eth0")[0] != 0
    assert server.shell("cat /proc/sys/net/ipv6/conf/default/accept_ra") == (0, "0")


def check_files_of_the_driver(server: Machine) -> None:
    """Check that the files of ``machines.start`` belong to the server's root user."""
    for path in ("/etc", "/etc/hostname", "/etc/hosts", "/root/.ssh/authorized_keys"):
        assert server.run("stat", "-c", "%u:%g", path) == (0, "0:0"), path
    assert server.shell("echo more >> /etc/hosts && cat /etc/hostname") == (0, "web-1")


def check_rescue(engine: Engine, client: docker.APIClient, instance_uuid: str) -> None:
    """Check that a rescue shows and changes the files of a server by their owners in it."""
    spec = describe(instance_uuid)
    own = start(engine, client, instance_uuid, spec)
    try:
        assert own.shell("echo broken >/file && chown user /file && rm /bin/true")[0] == 0
        client.kill(own.id)
        client.wait(own.id)
        rescue.set_aside(engine, instance_uuid, engine.inspect_container(own.id))
        stand_in = rescue.stand_in(spec, engine.inspect_storage(own.id), instance_uuid)
        helper = start(engine, client, instance_uuid, stand_in)
        found = helper.shell(
            "stat -c %u:%g /rescue /rescue/file; test -e /rescue/bin/true || echo gone"
        )
        assert found == (0, "0:0\n1000:0\ngone")
        assert helper.shell("echo mended >/rescue/file && touch /rescue/more")[0] == 0
        client.kill(helper.id)
        client.wait(helper.id)
        runtime.release_container(rescue.put_back(engine, instance_uuid))
        engine.start_container(own.id)
        again = Machine(client, spec.name, own.id, engine.inspect_container(own.id).pid)
        assert again.shell("cat /file; stat -c %u:%g /file /more") == (0, "mended\n1000:0\n0:0")
    finally:
        engine.remove_container(spec.name)
        rescue.remove(engine, instance_uuid)
