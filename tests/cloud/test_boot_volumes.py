# SPDX-License-Identifier: Apache-2.0
"""Servers that boot from Cinder's volumes, as a tenant uses them."""

from collections.abc import Callable
from typing import Any

import pytest
from openstack.compute.v2.server import Server
from openstack.connection import Connection
from openstack.exceptions import HttpException

from tests.cloud.guests import until
from tests.cloud.servers import Opened, Servers, fault, host_of
from tests.cloud.test_volumes import ACTIVE, SHUTOFF, Inspect, inside, larger, servers, volumes
from tests.cloud.volumes import Inside, Volumes

__all__ = ("inside", "larger", "servers", "volumes")

Boot = Callable[..., Server]


@pytest.fixture
def boot(servers: Servers, demo: Connection) -> Boot:
    """Return a function that creates a server of one volume, which must become ACTIVE."""

    def create(name: str, source: str, **mapping: Any) -> Server:
        found = {"boot_index": 0, "source_type": source, "destination_type": "volume"} | mapping
        server = demo.compute.create_server(
            name=name,
            flavor_id=demo.compute.find_flavor("d1.tiny").id,
            networks=[{"uuid": demo.network.find_network("private").id}],
            block_device_mapping=[found],
        )
        servers.made.append(server.id)
        server = servers.settle(server)
        assert server.status == "ACTIVE", fault(server)
        return server

    return create


def root_volume(demo: Connection, server: Server) -> str:
    (found,) = demo.compute.volume_attachments(server)
    assert found.device == "/dev/vda"
    return str(found.volume_id)


@pytest.mark.usefixtures("long_run")
def test_a_server_of_a_volume_of_an_image(
    boot: Boot, servers: Servers, inside: Inspect, demo: Connection, larger: Any
) -> None:
    compute, image = demo.compute, demo.image.find_image("busybox").id
    server = boot("root", "image", uuid=image, volume_size=1, delete_on_termination=True)
    volume = root_volume(demo, server)
    guest = inside(server)
    assert "ext4" in guest.ask("grep ' / / ' /proc/self/mountinfo")
    guest.ask("echo kept >/kept; sync")

    def still_there(begin: str) -> None:
        assert guest.ask("cat /kept") == "kept\n", begin

    for kind in ("SOFT", "HARD"):
        compute.reboot_server(server, kind)
        servers.wait(server, ACTIVE)
        still_there(kind)
    compute.stop_server(server)
    servers.wait(server, SHUTOFF)
    compute.start_server(server)
    servers.wait(server, ACTIVE)
    still_there("start")
    with pytest.raises(HttpException):
        compute.rescue_server(server)
    compute.resize_server(server, larger)
    servers.wait(server, lambda s: s.status == "VERIFY_RESIZE")
    still_there("resize")
    compute.confirm_server_resize(server)
    servers.wait(server, ACTIVE)
    # Since microversion 2.93, Cinder writes the image to the volume again.
    compute.rebuild_server(server, image=image)
    servers.wait(server, ACTIVE)
    assert guest.ask("hostname; ls /kept 2>/dev/null || true") == "root\n"
    guest.ask("echo kept >/kept; sync")
    compute.shelve_server(server)
    servers.wait(server, lambda s: s.status == "SHELVED_OFFLOADED")
    compute.unshelve_server(server)
    servers.wait(server, ACTIVE)
    still_there("unshelve")
    servers.delete(server)
    until(lambda: demo.block_storage.find_volume(volume) is None)


def test_a_server_of_a_snapshot_of_a_servers_volume(
    boot: Boot, servers: Servers, inside: Inspect, demo: Connection
) -> None:
    image = demo.image.find_image("busybox").id
    first = boot("first", "image", uuid=image, volume_size=1, delete_on_termination=True)
    guest = inside(first)
    guest.ask("echo first >/kept; sync")
    made = demo.compute.create_server_image(first, "of-a-volume", wait=True)
    snapshot: Any = None
    try:
        (snapshot,) = demo.block_storage.snapshots(volume_id=root_volume(demo, first))
        until(lambda: demo.block_storage.get_snapshot(snapshot).status == "available")
        second = boot(
            "second", "snapshot", uuid=snapshot.id, volume_size=2, delete_on_termination=True
        )
        other = inside(second)
        assert other.ask("cat /kept") == "first\n"
        assert other.ask("hostname") == "second\n"
        # The file system has the size of the larger volume.
        assert int(other.ask("stat -f -c %b /")) * 4096 > 1 << 30
        other.ask("echo second >/kept; sync")
        assert guest.ask("cat /kept") == "first\n"
        servers.delete(second)
    finally:
        demo.image.delete_image(made)
        if snapshot is not None:
            demo.block_storage.delete_snapshot(snapshot)
            until(lambda: demo.block_storage.find_snapshot(snapshot.id) is None)


@pytest.mark.usefixtures("long_run")
def test_a_server_moves_with_its_volume(
    boot: Boot,
    servers: Servers,
    inside: Inspect,
    demo: Connection,
    admin: Connection,
    opened: Opened,
) -> None:
    image = demo.image.find_image("busybox").id
    server = boot("mover", "image", uuid=image, volume_size=1, delete_on_termination=True)
    guest = inside(server)
    guest.ask("echo moved >/kept; sync")
    for settle, host in (
        (demo.compute.revert_server_resize, "host1"),
        (demo.compute.confirm_server_resize, "host2"),
    ):
        with opened("host1", "host2"):
            admin.compute.migrate_server(server.id)
            server = servers.wait(server, lambda s: s.status in ("VERIFY_RESIZE", "ERROR"))
        assert server.status == "VERIFY_RESIZE", fault(server)
        assert host_of(admin, server) == "host2"
        assert guest.ask("cat /kept") == "moved\n"
        settle(server)
        servers.wait(server, ACTIVE)
        assert host_of(admin, server) == host
        assert guest.ask("cat /kept") == "moved\n"
    servers.delete(server)


def test_a_volume_with_data_is_no_root(
    servers: Servers, volumes: Volumes, inside: Inspect, demo: Connection
) -> None:
    volume = volumes.create()
    owner = servers.create("owner")
    device = volumes.attach(owner, volume)
    guest: Inside = inside(owner)
    guest.write(device, "data")
    volumes.detach(owner, volume)
    demo.block_storage.set_volume_bootable_status(volume, True)
    server = demo.compute.create_server(
        name="refused",
        flavor_id=demo.compute.find_flavor("d1.tiny").id,
        networks="none",
        block_device_mapping=[
            {
                "boot_index": 0,
                "uuid": volume.id,
                "source_type": "volume",
                "destination_type": "volume",
            }
        ],
    )
    servers.made.append(server.id)
    server = servers.settle(server)
    assert server.status == "ERROR"
    assert "nothing on it was changed" in fault(server)
    servers.delete(server)
    volumes.wait(volume, "available")
    assert volumes.attach(owner, volume) == device
    assert guest.read(device) == "data"
    volumes.detach(owner, volume)
