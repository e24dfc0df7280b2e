# SPDX-License-Identifier: Apache-2.0
"""Moves and copies through a registry, and automatic confirmation: the operator's options."""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator

import pytest
from openstack.compute.v2.server import Server
from openstack.connection import Connection

from devcloud import supervise
from devcloud.network import inside
from devcloud.settings import API_ADDRESS, NAMESPACE, Settings
from novadocker.virt.docker.migration.registry_client import CERTIFICATES
from tests.cloud.guests import until
from tests.cloud.owners import engine_of, has_container, shell
from tests.cloud.servers import Opened, Servers, address, fault, host_of, migrations, pings
from tests.cloud.test_moves import evacuate, second_host_down
from tests.cloud.test_servers import ACTIVE
from tests.engine import registries
from tests.engine.registries import Registry

pytestmark = pytest.mark.usefixtures("long_run")

DISK_MIB = 256
# Nova confirms resizes in a task that runs every minute.
CONFIRM_SECONDS = 180
# A copy is due every minute, and nova-compute checks every half minute.
COPY_SECONDS = 180

OPTIONS = """
[DEFAULT]
resize_confirm_window = 1
[docker]
transfer_registry = {address}/moves
registry_credentials_file = {credentials}
copy_interval = 1
"""


@pytest.fixture(scope="module")
def registry(cloud: Settings) -> Iterator[Registry]:
    """Yield a registry that all hosts reach, trust and use."""
    # The user of nova-compute must be able to enter the directory.
    folder = cloud.etc / "moves-registry"
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        enter = inside(NAMESPACE, [])
        found = stack.enter_context(
            registries.registry(folder, DISK_MIB, f"{API_ADDRESS}:5443", enter)
        )
        trusted = CERTIFICATES / found.address
        trusted.mkdir(parents=True)
        stack.callback(shutil.rmtree, trusted)
        (trusted / "ca.crt").write_bytes((found.folder / "ca.crt").read_bytes())
        options = OPTIONS.format(address=found.address, credentials=found.credentials)
        stack.enter_context(configured(cloud, options))
        yield found


@contextlib.contextmanager
def configured(cloud: Settings, options: str) -> Iterator[None]:
    """Restart each nova-compute with more options; restore its configuration at the end."""
    paths = [cloud.host_etc(host) / "nova-compute.conf" for host in cloud.hosts]
    before = {path: path.read_text() for path in paths}
    names = [f"nova-compute-{host.name}" for host in cloud.hosts]
    try:
        for path, text in before.items():
            path.write_text(text + options)
        supervise.control(cloud, ["restart", *names])
        yield
    finally:
        for path, text in before.items():
            path.write_text(text)
        supervise.control(cloud, ["restart", *names])


def run(cloud: Settings, number: int, server: Server, command: str) -> str:
    """Return the output of a command in a server."""
    with contextlib.closing(engine_of(cloud, cloud.hosts[number])) as engine:
        return shell(engine, server, command)


def copied_at(registry: Registry, server: Server) -> float:
    """Return the time at which a server's last copy was complete; 0 if there is none."""
    tag = f"{server.id}/copy/_manifests/tags/copy/current/link"
    return max((path.stat().st_mtime for path in registry.disk.rglob(tag)), default=0)


def begun_at(cloud: Settings, server: Server) -> float:
    """Return the time at which the second host began a server's last copy; 0 if there is none."""
    mark = cloud.host_data(cloud.hosts[1]) / "nova/copies" / server.id
    return mark.stat().st_mtime if mark.exists() else 0


def process_of(cloud: Settings, number: int, server: Server) -> int:
    """Return the id of a server's first process."""
    with contextlib.closing(engine_of(cloud, cloud.hosts[number])) as engine:
        return int(engine.inspect_container(f"nova-{server.id}")["State"]["Pid"])


def test_an_evacuated_server_is_what_its_last_copy_has(
    servers: Servers,
    admin: Connection,
    cloud: Settings,
    tenant_network: str,
    opened: Opened,
    registry: Registry,
) -> None:
    with opened("host2"):
        server = servers.create("evacuee", config_drive=True)
        bystander = servers.create("bystander")
    assert host_of(admin, server) == host_of(admin, bystander) == "host2", fault(server)
    # An evacuation renews the drive's random seed and password, as a rebuild does.
    look = (
        "cat /written; sha256sum /data; hostname;"
        """ grep -o '"uuid": "[^"]*"' /config-2/openstack/latest/meta_data.json"""
    )
    run(cloud, 1, server, "echo kept >/written; head -c 8388608 /dev/urandom >/data")
    before = run(cloud, 1, server, look)
    assert before.startswith("kept\n")
    written = time.time()
    until(lambda: copied_at(registry, server) > begun_at(cloud, server) > written, COPY_SECONDS)
    run(cloud, 1, server, "echo lost >/written")
    process = process_of(cloud, 1, server)
    with second_host_down(admin, cloud, "docker-host2"):
        # The servers survive their engine, so kill this one explicitly.
        os.kill(process, signal.SIGKILL)
        evacuate(servers, admin, server)
    # When the host is back, it deletes the evacuated server's container and no other.
    until(lambda: not has_container(cloud, 1, server))
    assert has_container(cloud, 1, bystander)
    admin.compute.start_server(server)
    server = servers.wait(server, ACTIVE)
    assert host_of(admin, server) == "host1"
    assert run(cloud, 0, server, look) == before
    until(lambda: pings(tenant_network, address(server)))
    until(lambda: pings(tenant_network, address(bystander)))
    servers.delete_all()
    until(lambda: not registry.images())


def test_a_move_through_the_registry_confirms_itself(
    servers: Servers,
    admin: Connection,
    cloud: Settings,
    tenant_network: str,
    opened: Opened,
    registry: Registry,
) -> None:
    server = servers.create("mover")
    assert server.status == "ACTIVE", fault(server)
    run(cloud, 0, server, "echo kept >/written")
    with opened("host1", "host2"):
        admin.compute.migrate_server(server.id)
        server = servers.wait(server, lambda now: now.status in ("VERIFY_RESIZE", "ERROR"))
    assert server.status == "VERIFY_RESIZE", fault(server)
    left = [path for path in (*registry.images(), *registry.data()) if f"{server.id}/_" in path]
    assert left == []
    server = servers.wait(server, ACTIVE, CONFIRM_SECONDS)
    assert migrations(admin, server) == ["confirmed"]
    assert host_of(admin, server) == "host2"
    assert not has_container(cloud, 0, server)
    assert run(cloud, 1, server, "cat /written") == "kept\n"
    assert pings(tenant_network, address(server))
