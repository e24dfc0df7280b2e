# SPDX-License-Identifier: Apache-2.0
"""Cinder's volumes in servers, as a tenant uses them."""

import concurrent.futures
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openstack.compute.v2.server import Server
from openstack.connection import Connection
from openstack.exceptions import BadRequestException, ConflictException, HttpException

from devcloud import supervise
from devcloud.settings import Settings
from tests.cloud.guests import until
from tests.cloud.servers import Opened, Servers, fault, host_of, last_events
from tests.cloud.test_moves import evacuate, second_host_down
from tests.cloud.volumes import Inside, Volumes, by_id

ACTIVE, SHUTOFF = (lambda s: s.status == "ACTIVE"), (lambda s: s.status == "SHUTOFF")

GIB = 1 << 30

MANY = 26
"""The last of the volumes has the name /dev/vdaa."""

Inspect = Callable[[Server], Inside]


@pytest.fixture
def volumes(demo: Connection) -> Iterator[Volumes]:
    """Yield the tenant's volumes and delete them after the test."""
    made = Volumes(demo)
    yield made
    made.delete_all()


@pytest.fixture
def servers(volumes: Volumes, demo: Connection) -> Iterator[Servers]:
    """Yield the tenant's servers and delete them before their volumes."""
    made = Servers(demo)
    yield made
    made.delete_all()


@pytest.fixture
def inside(cloud: Settings, admin: Connection) -> Inspect:
    """Return a function that gives access to a server's container."""
    return lambda server: Inside(cloud, admin, server)


@pytest.fixture(scope="module")
def larger(admin: Connection) -> Iterator[Any]:
    """Yield a flavor with more memory than ``d1.tiny``."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    made = admin.compute.create_flavor(name=name, vcpus=1, ram=320, disk=1)
    yield made
    admin.compute.delete_flavor(made)


def create(servers: Servers, name: str, **attributes: Any) -> Server:
    """Create a server, which must become ACTIVE."""
    server = servers.create(name, **attributes)
    assert server.status == "ACTIVE", fault(server)
    return server


def test_a_volume_goes_from_server_to_server(
    servers: Servers, volumes: Volumes, inside: Inspect, engine: Any
) -> None:
    first, second, volume = create(servers, "first"), create(servers, "second"), volumes.create()
    device = volumes.attach(first, volume)
    assert device == "/dev/vdb"
    guest = inside(first)
    major, minor = (int(n, 16) for n in guest.ask(f"stat -c '%t %T' {device}").split())
    assert guest.size(device) == GIB
    assert guest.ask(f"readlink -f {by_id(volume)}").strip() == device
    guest.write(device, "mine")
    # Only one server has a volume that is not of the type multiattach.
    with pytest.raises((BadRequestException, ConflictException)):
        volumes.attach(second, volume)
    volumes.detach(first, volume)
    assert guest.run(f"test -e {device} -o -L {by_id(volume)}")[0] == 1
    # The server lost the permission, too, so another node of the device does not help. Its root
    # can create none, and the host's root none that belongs to a user of its namespace.
    assert guest.run("mkdir /tmp/others")[0] == 0
    layer = engine.inspect_container(f"nova-{first.id}")["GraphDriver"]["Data"]["UpperDir"]
    other = Path(layer, "tmp/others/old")
    os.mknod(other, stat.S_IFBLK | 0o600, os.makedev(major, minor))
    status, output = guest.run("dd if=/tmp/others/old bs=512 count=1")
    assert status != 0
    assert "not permitted" in output
    assert volumes.attach(second, volume) == device
    assert inside(second).read(device) == "mine"


def test_a_volume_survives_what_a_server_goes_through(
    servers: Servers,
    volumes: Volumes,
    inside: Inspect,
    demo: Connection,
    engine: Any,
    larger: Any,
) -> None:
    compute, volume = demo.compute, volumes.create()
    server = create(servers, "survivor")
    compute.pause_server(server)
    servers.wait(server, lambda s: s.status == "PAUSED")
    device = volumes.attach(server, volume)
    compute.unpause_server(server)
    servers.wait(server, ACTIVE)
    guest = inside(server)
    guest.write(device, "kept")

    def still_there(begin: str) -> None:
        assert guest.read(device) == "kept", begin
        assert guest.read(by_id(volume)) == "kept", begin
        guest.write(device, "kept")

    still_there("unpause")
    for act, words in ((compute.reboot_server, ("SOFT",)), (compute.reboot_server, ("HARD",))):
        act(server, *words)
        servers.wait(server, ACTIVE)
        still_there(words[0])
    compute.stop_server(server)
    servers.wait(server, SHUTOFF)
    compute.start_server(server)
    servers.wait(server, ACTIVE)
    still_there("start")
    engine.restart(f"nova-{server.id}", timeout=0)
    still_there("a restart behind Nova's back")
    compute.resize_server(server, larger)
    servers.wait(server, lambda s: s.status == "VERIFY_RESIZE")
    still_there("resize")
    compute.confirm_server_resize(server)
    servers.wait(server, ACTIVE)
    still_there("confirm")
    compute.rebuild_server(server, image=demo.image.find_image("busybox").id)
    servers.wait(server, ACTIVE)
    still_there("rebuild")
    compute.rescue_server(server)
    servers.wait(server, lambda s: s.status == "RESCUE")
    still_there("rescue")
    compute.unrescue_server(server)
    servers.wait(server, ACTIVE)
    still_there("unrescue")
    volumes.detach(server, volume)


def test_a_stopped_server_gets_and_loses_volumes(
    servers: Servers, volumes: Volumes, inside: Inspect, demo: Connection
) -> None:
    server, stays, goes = create(servers, "stopped"), volumes.create(), volumes.create()
    demo.compute.stop_server(server)
    servers.wait(server, SHUTOFF)
    devices = [volumes.attach(server, volume) for volume in (goes, stays)]
    assert devices == ["/dev/vdb", "/dev/vdc"]
    volumes.detach(server, goes)
    demo.compute.start_server(server)
    servers.wait(server, ACTIVE)
    guest = inside(server)
    guest.write(devices[1], "late")
    assert guest.read(by_id(stays)) == "late"
    assert guest.run(f"test -e {devices[0]}")[0] == 1


def test_a_busy_volume_is_not_detached(
    servers: Servers, volumes: Volumes, inside: Inspect, admin: Connection, engine: Any
) -> None:
    server, volume = create(servers, "busy"), volumes.create()
    device = volumes.attach(server, volume)
    guest = inside(server)
    guest.write(device, "busy")
    engine.exec_start(
        engine.exec_create(f"nova-{server.id}", ["sh", "-c", f"exec sleep 600 <{device}"])["Id"],
        detach=True,
    )
    until(lambda: guest.run("pidof sleep")[0] == 0)
    volumes.connection.compute.delete_volume_attachment(server, volume.id)

    def refused() -> bool:
        events = [event for event in last_events(admin, server) if event["result"] == "Error"]
        return any("sleep" in (event["details"] or "") for event in events)

    until(refused)
    volumes.wait(volume, "in-use")
    assert guest.read(device) == "busy"
    guest.ask("kill $(pidof sleep)")
    volumes.detach(server, volume)


def test_a_volume_grows_under_its_server(
    servers: Servers, volumes: Volumes, inside: Inspect, demo: Connection
) -> None:
    server, volume = create(servers, "grows"), volumes.create()
    device = volumes.attach(server, volume)
    guest = inside(server)
    guest.write(device, "small")
    demo.block_storage.extend_volume(volume, 2)
    until(lambda: guest.size(device) == 2 * GIB)
    assert guest.read(device) == "small"
    volumes.wait(volume, "in-use")


def test_volumes_of_a_new_server(
    servers: Servers, volumes: Volumes, inside: Inspect, demo: Connection
) -> None:
    keeps = volumes.create()
    image = demo.image.find_image("busybox").id
    blank = {"source_type": "blank", "destination_type": "volume", "volume_size": 1}
    server = create(
        servers,
        "new",
        block_device_mapping=[
            {"boot_index": 0, "uuid": image, "source_type": "image", "destination_type": "local"},
            {"boot_index": -1, "uuid": keeps.id, "source_type": "volume"}
            | {"destination_type": "volume", "tag": "database"},
            blank | {"boot_index": -1, "delete_on_termination": True},
        ],
    )
    attached = {found.volume_id: found for found in demo.compute.volume_attachments(server)}
    assert attached[keeps.id].device == "/dev/vdb"
    (other,) = attached.keys() - {keeps.id}
    guest = inside(server)
    for number, found in enumerate(attached.values()):
        guest.write(found.device, f"volume-{number}")
        assert guest.size(found.device) == GIB
    servers.delete(server)
    volumes.wait(keeps, "available")
    # Nova deletes the volume that it created for the server.
    until(lambda: demo.block_storage.find_volume(other) is None)


def test_two_servers_ask_for_one_volume_at_once(
    servers: Servers, volumes: Volumes, inside: Inspect
) -> None:
    both, volume = [create(servers, f"rival{n}") for n in range(2)], volumes.create()

    def attach(server: Server) -> str | None:
        try:
            return volumes.attach(server, volume)
        except HttpException:
            return None

    with concurrent.futures.ThreadPoolExecutor() as pool:
        devices = list(pool.map(attach, both))
    assert sorted(map(str, devices)) == ["/dev/vdb", "None"]
    for server, device in zip(both, devices, strict=True):
        assert (inside(server).run("test -b /dev/vdb")[0] == 0) is (device is not None)


def test_a_volume_of_several_servers(servers: Servers, volumes: Volumes, inside: Inspect) -> None:
    both, volume = (
        [create(servers, f"both{n}") for n in range(2)],
        volumes.create(volume_type="multiattach"),
    )
    devices = [volumes.attach(server, volume) for server in both]
    inside(both[0]).write(devices[0], "shared")
    assert inside(both[1]).read(devices[1]) == "shared"
    volumes.detach(both[0], volume, "in-use")
    until(lambda: inside(both[0]).run(f"test -e {devices[0]}")[0] == 1)
    assert inside(both[1]).read(devices[1]) == "shared"
    volumes.detach(both[1], volume)


def test_a_devices_name_is_no_way_out(servers: Servers, volumes: Volumes, inside: Inspect) -> None:
    server, volume = create(servers, "named"), volumes.create()
    before = inside(server).ask("ls -R /etc /dev; cat /etc/passwd")
    for name in ("/dev/../x", "/dev/vdb/../../etc/passwd", "vdb\n", "/etc/vdb"):
        try:
            assert volumes.attach(server, volume, device=name) == "/dev/vdb"
        except BadRequestException:
            volumes.wait(volume, "available")
        else:
            volumes.detach(server, volume)
        assert inside(server).ask("ls -R /etc /dev; cat /etc/passwd") == before


def test_a_migrated_server_has_its_volume(
    servers: Servers,
    volumes: Volumes,
    inside: Inspect,
    demo: Connection,
    admin: Connection,
    opened: Opened,
) -> None:
    server, volume = create(servers, "mover"), volumes.create()
    device = volumes.attach(server, volume)
    guest = inside(server)
    guest.write(device, "first")
    for settle, host in (
        (demo.compute.revert_server_resize, "host1"),
        (demo.compute.confirm_server_resize, "host2"),
    ):
        with opened("host1", "host2"):
            admin.compute.migrate_server(server.id)
            server = servers.wait(server, lambda s: s.status in ("VERIFY_RESIZE", "ERROR"))
        assert server.status == "VERIFY_RESIZE", fault(server)
        assert host_of(admin, server) == "host2"
        assert guest.read(device) == "first"
        settle(server)
        servers.wait(server, ACTIVE)
        assert host_of(admin, server) == host
        assert guest.read(device) == "first"
        guest.write(device, "first")
    volumes.detach(server, volume)


@pytest.mark.usefixtures("long_run")
def test_an_evacuated_server_has_its_volume(
    servers: Servers,
    volumes: Volumes,
    inside: Inspect,
    admin: Connection,
    cloud: Settings,
    opened: Opened,
) -> None:
    with opened("host2"):
        server = create(servers, "evacuee")
    volume = volumes.create()
    device = volumes.attach(server, volume)
    guest = inside(server)
    guest.write(device, "rescued")
    with second_host_down(admin, cloud, "docker-host2"):
        evacuate(servers, admin, server)
    admin.compute.start_server(server)
    servers.wait(server, ACTIVE)
    assert guest.read(device) == "rescued"
    volumes.detach(server, volume)


@pytest.mark.usefixtures("long_run")
def test_a_shelved_server_has_its_volume_again(
    servers: Servers, volumes: Volumes, inside: Inspect, demo: Connection
) -> None:
    server, volume = create(servers, "shelved"), volumes.create()
    device = volumes.attach(server, volume)
    guest = inside(server)
    guest.write(device, "shelved")
    demo.compute.shelve_server(server)
    servers.wait(server, lambda s: s.status in ("SHELVED", "SHELVED_OFFLOADED"))
    demo.compute.unshelve_server(server)
    servers.wait(server, ACTIVE)
    assert guest.read(device) == "shelved"


@pytest.mark.usefixtures("long_run")
def test_a_restarted_host_gives_volumes_back(
    servers: Servers, volumes: Volumes, inside: Inspect, cloud: Settings
) -> None:
    server, volume = create(servers, "returns"), volumes.create()
    device = volumes.attach(server, volume)
    guest = inside(server)
    guest.write(device, "returned")
    supervise.control(cloud, ["stop", "nova-compute-host1", "docker-host1"])
    supervise.control(cloud, ["start", "docker-host1", "nova-compute-host1"])
    until(lambda: guest.run("true")[0] == 0, 180)
    assert guest.read(device) == "returned"
    volumes.detach(server, volume)


@pytest.mark.usefixtures("long_run")
def test_many_volumes(servers: Servers, volumes: Volumes, inside: Inspect) -> None:
    server = create(servers, "many")
    found = {volumes.attach(server, made): made for made in [volumes.create() for _ in range(MANY)]}
    assert len(found) == MANY
    guest = inside(server)
    for device in found:
        guest.write(device, device)
    for device, volume in found.items():
        assert guest.read(by_id(volume)) == device
    for volume in found.values():
        volumes.detach(server, volume)


@pytest.mark.usefixtures("long_run")
def test_a_volume_comes_and_goes_fifty_times(
    servers: Servers, volumes: Volumes, inside: Inspect
) -> None:
    server, volume = create(servers, "often"), volumes.create()
    guest = inside(server)
    for time in range(50):
        device = volumes.attach(server, volume)
        assert device == "/dev/vdb"
        assert guest.read(device) == (f"time-{time - 1}" if time else "")
        guest.write(device, f"time-{time}")
        volumes.detach(server, volume)
