# SPDX-License-Identifier: Apache-2.0
"""Migrations of servers between hosts, as their tenant and the operator see them."""

import contextlib
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openstack.compute.v2.server import Server
from openstack.connection import Connection
from openstack.exceptions import BadRequestException, ConflictException

from devcloud import supervise
from devcloud.images import archive_path
from devcloud.settings import Settings
from tests import archives
from tests.cloud.guests import Guest, until
from tests.cloud.owners import allocated_from, engine_of, has_container, provider_of
from tests.cloud.servers import Opened, Servers, address, fault, host_of, migrations, pings
from tests.cloud.test_consoles import Screen, ask
from tests.cloud.test_servers import ACTIVE, SHUTOFF

BACK_SECONDS = 120

VOLUME = "/data"
"""A volume in the server's image; its files are not part of the container's root file system."""

FILL = f"""
set -e; rm /etc/issue
for root in /srv {VOLUME}; do
    mkdir -p $root/tree/deep; cd $root/tree
    head -c 3000000 /dev/urandom >deep/file; ln deep/file linked; truncate -s 1G sparse
    chown 12:34 deep/file; chmod 4750 deep/file; ln -s deep/file link
    setfattr -n user.colour -v green deep/file; setfacl -m u:56:r deep/file
done
sync; sleep 3
for root in /srv {VOLUME}; do cd $root/tree; echo late >late; mv deep moved; done
"""
CHECK = f"""
set -e
for root in /srv {VOLUME}; do
    cd $root/tree; sha256sum moved/file late; stat -c '%a %u %g %h' linked; readlink link
    getfattr -n user.colour linked; getfacl -n linked
    stat -c %s sparse; test $(stat -c %b sparse) -lt 100; test ! -e deep
done
mountpoint {VOLUME}; test ! -e /etc/issue
hostname; cat /etc/machine-id; ls /config-2/openstack/latest; ip -o -4 address | cut -d' ' -f2-
"""


def with_volume(archive: Path) -> bytes:
    """Return an image's archive with ``VOLUME`` added to its configuration."""
    with tarfile.open(archive) as source:
        files = {member.name: source.extractfile(member) for member in source}
        content = {name: file.read() for name, file in files.items() if file}
    (shown,) = json.loads(content["manifest.json"])
    config = json.loads(content[shown["Config"]])
    config["config"]["Volumes"] = {VOLUME: {}}
    layers = [content[name] for name in shown["Layers"]]
    return archives.tar(archives.docker_files(archives.dump(config), layers))


def test_a_server_with_data_moves_and_comes_back(
    servers: Servers,
    demo: Connection,
    admin: Connection,
    cloud: Settings,
    tenant_network: str,
    opened: Opened,
    image: Callable[..., str],
) -> None:
    server = servers.create(
        "mover",
        image=image(with_volume(archive_path(cloud, "debian"))),
        flavor="d1.small",
        key_name="demo",
        config_drive=True,
        networks=[
            {"uuid": demo.network.find_network(name).id} for name in ("private", "private-vlan")
        ],
    )
    assert server.status == "ACTIVE", fault(server)
    guest = Guest(cloud, server, tenant_network)
    guest.wait()
    guest.ask("sudo sh", FILL)
    before = guest.ask("sudo sh", CHECK)
    console = Screen(ask(demo, server, "serial", "serial").json()["remote_console"]["url"])
    with opened("host1", "host2"):
        admin.compute.migrate_server(server.id)
        with pytest.raises(ConflictException):
            admin.compute.migrate_server(server.id)
        server = servers.wait(server, lambda now: now.status in ("VERIFY_RESIZE", "ERROR"))
    assert server.status == "VERIFY_RESIZE", fault(server)
    assert host_of(admin, server) == "host2"
    guest.wait()
    assert guest.ask("sudo sh", CHECK) == before
    # The open console ended when the server stopped.
    while console.read() is not None:
        pass
    # The source keeps its container, stopped, until the move is confirmed.
    assert has_container(cloud, 0, server)
    demo.compute.confirm_server_resize(server)
    servers.wait(server, ACTIVE)
    assert not has_container(cloud, 0, server)
    assert allocated_from(admin, server) == {provider_of(admin, "host2")}

    guest.ask("sudo tee /srv/tree/late", "here\n")
    # A resize returns the server to host1, because only host1 is enabled; then it is reverted.
    with opened("host1"):
        demo.compute.resize_server(server, demo.compute.find_flavor("d1.medium").id)
        server = servers.wait(server, lambda now: now.status in ("VERIFY_RESIZE", "ERROR"))
    assert server.status == "VERIFY_RESIZE", fault(server)
    assert host_of(admin, server) == "host1"
    guest.wait()
    assert guest.ask("cat /srv/tree/late") == "here\n"
    demo.compute.revert_server_resize(server)
    servers.wait(server, ACTIVE)
    assert host_of(admin, server) == "host2"
    assert not has_container(cloud, 0, server)
    guest.wait()
    assert guest.ask("cat /srv/tree/late") == "here\n"


def test_a_stopped_server_whose_image_is_gone_moves_and_stays_stopped(
    servers: Servers,
    demo: Connection,
    admin: Connection,
    tenant_network: str,
    opened: Opened,
    image: Callable[..., str],
    busybox: Path,
) -> None:
    name = image(busybox)
    server = servers.create("stopped", image=name)
    demo.compute.stop_server(server)
    servers.wait(server, SHUTOFF)
    demo.image.delete_image(demo.image.find_image(name).id)
    with opened("host1", "host2"):
        admin.compute.migrate_server(server.id)
        server = servers.wait(server, lambda now: now.status in ("VERIFY_RESIZE", "ERROR"))
    assert server.status == "VERIFY_RESIZE", fault(server)
    demo.compute.confirm_server_resize(server)
    servers.wait(server, SHUTOFF)
    demo.compute.start_server(server)
    server = servers.wait(server, ACTIVE)
    assert host_of(admin, server) == "host2"
    until(lambda: pings(tenant_network, address(server)))


def test_a_host_that_is_not_reached_leaves_the_server_as_it_was(
    servers: Servers,
    admin: Connection,
    cloud: Settings,
    tenant_network: str,
    opened: Opened,
) -> None:
    server = servers.create("stays")
    admin.compute.pause_server(server)
    servers.wait(server, lambda now: now.status == "PAUSED")
    # Nova migrates only running or stopped servers.
    with pytest.raises(ConflictException):
        admin.compute.migrate_server(server.id)
    admin.compute.unpause_server(server)
    servers.wait(server, ACTIVE)
    supervise.control(cloud, ["stop", "sshd-host2"])
    try:
        with opened("host1", "host2"):
            admin.compute.migrate_server(server.id)
            servers.wait(
                server,
                lambda now: now.status == "ACTIVE" and host_of(admin, now) == "host1",
            )
            until(lambda: migrations(admin, server) == ["error"])
    finally:
        supervise.control(cloud, ["start", "sshd-host2"])
    assert pings(tenant_network, address(server))
    assert not has_container(cloud, 1, server)


def forced_up(admin: Connection, service: Any) -> bool:
    try:
        admin.compute.update_service_forced_down(service, forced=False)
    except BadRequestException:
        return False
    return True


@contextlib.contextmanager
def second_host_down(admin: Connection, cloud: Settings, *programs: str) -> Iterator[None]:
    """Stop the second host's nova-compute and further programs; force the service down in Nova."""
    (service,) = admin.compute.services(binary="nova-compute", host="host2")
    names = ["nova-compute-host2", *programs]
    supervise.control(cloud, ["stop", *names])
    try:
        admin.compute.update_service_forced_down(service, forced=True)
        yield
    finally:
        supervise.control(cloud, ["start", *reversed(names)])
        # Nova accepts the service after it has processed the evacuated instances.
        until(lambda: forced_up(admin, service), BACK_SECONDS)


def evacuate(servers: Servers, admin: Connection, server: Server) -> None:
    """Evacuate a server to the first host."""
    admin.compute.evacuate_server(server.id)
    # Nova does not start an evacuated server, because only the operator knows if the old host is
    # dead.
    server = servers.wait(
        server, lambda now: now.status == "ERROR" or host_of(admin, now) == "host1"
    )
    assert server.status == "SHUTOFF", fault(server)


def test_evacuation_from_a_dead_host(
    servers: Servers,
    admin: Connection,
    cloud: Settings,
    tenant_network: str,
    opened: Opened,
) -> None:
    with opened("host2"):
        server = servers.create("evacuee")
        bystander = servers.create("bystander")
        lost = servers.create("lost")
    assert {host_of(admin, found) for found in (server, bystander, lost)} == {"host2"}
    with contextlib.closing(engine_of(cloud, cloud.hosts[1])) as engine:
        engine.remove_container(f"nova-{lost.id}", force=True, v=True)
    servers.wait(lost, SHUTOFF)
    with second_host_down(admin, cloud):
        evacuate(servers, admin, server)
        assert has_container(cloud, 1, server)
        evacuate(servers, admin, lost)
    # When the host is back, it deletes the evacuated server's container and no other.
    until(lambda: not has_container(cloud, 1, server))
    assert has_container(cloud, 1, bystander)
    for evacuated in (server, lost):
        admin.compute.start_server(evacuated)
        servers.wait(evacuated, ACTIVE)
    for running in (server, lost, bystander):
        until(lambda running=running: pings(tenant_network, address(running)))
