# SPDX-License-Identifier: Apache-2.0
"""Containers whose root is unprivileged on the host, on an engine with ``userns-remap``."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import docker
import pytest
from nova.network import model

from novadocker import exception
from novadocker.linux import namespaces
from novadocker.linux.namespaces import IdMaps
from novadocker.privsep.guest import runtime
from novadocker.privsep.network import namespace
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.host import id_maps
from novadocker.virt.docker.limits import isolation
from novadocker.virt.docker.network.nic import nics_from_network_info
from tests.engine import machines, namespaced, networks
from tests.engine.engines import OwnEngine
from tests.engine.machines import Machine, describe, start
from tests.engine.remapping import FIRST, remapped_engine


@pytest.fixture(scope="module")
def remapped(privileged: None, state_folder: Path) -> Iterator[OwnEngine]:
    with remapped_engine(state_folder, "remapped") as found:
        yield found


@pytest.fixture(scope="module")
def engine(remapped: OwnEngine) -> Engine:
    return Engine(remapped.url, timeout=30, load_timeout=60)


@pytest.fixture(scope="module")
def client(remapped: OwnEngine) -> Iterator[docker.APIClient]:
    with machines.connected(remapped.url) as found:
        yield found


@pytest.fixture
def ids(engine: Engine, state_folder: Path) -> IdMaps:
    found = id_maps.read_id_maps(engine.info(), state_folder / "remapped")
    assert found == IdMaps(users=((0, FIRST, 65536),), groups=((0, FIRST, 65536),))
    return found


@pytest.fixture
def wired(instance_uuid: str, ids: IdMaps) -> Iterator[str]:
    """Yield an instance with a complete namespace and without a switch."""
    port = networks.vif(networks.subnet("10.7.0.0/24", ["10.7.0.5"], "10.7.0.1"))
    nics = nics_from_network_info(model.NetworkInfo([port]))
    namespace.create_owned_namespace(instance_uuid, ids.users, ids.groups)
    namespace.wire_nics(instance_uuid, [asdict(nic) for nic in nics])
    # Each start repeats the call.
    namespace.create_owned_namespace(instance_uuid, ids.users, ids.groups)
    yield instance_uuid
    namespace.unwire_nic(instance_uuid, port["devname"])
    runtime.delete_namespace(instance_uuid)
    assert not Path(namespace.USER_NAMESPACES, f"nova-{instance_uuid}").exists()


@pytest.fixture
def server(engine: Engine, client: docker.APIClient, wired: str) -> Iterator[Machine]:
    yield start(engine, client, wired, describe(wired))
    engine.remove_container(f"nova-{wired}")


@pytest.mark.parametrize(("command", "code"), [("reboot", 129), ("poweroff", 130)])
def test_a_reboot_and_a_power_off_from_inside(
    engine: Engine, client: docker.APIClient, wired: str, command: str, code: int
) -> None:
    spec = replace(describe(wired), entrypoint=("busybox", command), command=("-f",))
    found = start(engine, client, wired, spec)
    assert engine.wait_container(found.id, 30) == code
    engine.remove_container(found.id)


def test_root_is_nobody_on_the_host(server: Machine) -> None:
    assert server.run("id", "-u") == (0, "0")
    assert f"Uid:\t{FIRST}\t" in Path(f"/proc/{server.pid}/status").read_text()


def test_the_network(server: Machine) -> None:
    namespaced.check_network(server)


def test_what_is_put_into_it_is_roots(server: Machine) -> None:
    namespaced.check_files_of_the_driver(server)


def test_setuid_programs(server: Machine) -> None:
    assert server.run("su", "-c", "id -u", "user") == (0, "1000")


def test_a_restart_keeps_the_network(server: Machine, client: docker.APIClient) -> None:
    client.restart(server.id, timeout=0)
    assert "10.7.0.5/24" in server.run("ip", "address", "show", "eth0")[1]


def test_files_by_the_engine(server: Machine, engine: Engine) -> None:
    engine.put_files(server.id, {"/root/file": b"x"})
    assert server.run("stat", "-c", "%u", "/root/file") == (0, "0")


def test_a_rescue(engine: Engine, client: docker.APIClient, wired: str) -> None:
    namespaced.check_rescue(engine, client, wired)


def test_what_systemd_needs(engine: Engine, client: docker.APIClient, wired: str) -> None:
    spec = replace(describe(wired), systemd=True)
    server = start(engine, client, wired, spec)
    try:
        generator = "/run/systemd/system-generators/novadocker"
        assert server.run(generator, "/run/generated") == (0, "")
        assert server.run("grep", "PrivateUsers", "-r", "/run/generated")[0] == 0
        assert server.shell(f"echo >>{generator}")[0] != 0
        assert server.run("stat", "-c", "%u %a", "/run") == (0, "0 755")
    finally:
        engine.remove_container(spec.name)


def test_a_flavor_may_let_it_rule_its_own_network(
    engine: Engine, client: docker.APIClient, wired: str
) -> None:
    apart = replace(machines.PLAIN, capabilities=(*isolation.CAPABILITIES, "NET_ADMIN"))
    try:
        server = start(engine, client, wired, describe(wired, apart))
        assert server.run("ip", "address", "add", "10.9.9.9/24", "dev", "eth0")[0] == 0
        assert server.shell("echo 1 > /proc/sys/kernel/panic")[0] != 0
    finally:
        engine.remove_container(f"nova-{wired}")


def test_without_its_user_namespace_it_does_not_start(
    engine: Engine, client: docker.APIClient, wired: str
) -> None:
    namespaces.unmount_namespace(f"{namespace.USER_NAMESPACES}/nova-{wired}")
    try:
        with pytest.raises(exception.EngineError, match=r"user namespace .* is missing"):
            start(engine, client, wired, describe(wired))
    finally:
        engine.remove_container(f"nova-{wired}")
