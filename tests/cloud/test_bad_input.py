# SPDX-License-Identifier: Apache-2.0
"""Bad input causes a clear fault of the server and leaves nothing behind."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import pytest
from openstack.connection import Connection
from openstack.network.v2.agent import Agent

from devcloud import supervise
from devcloud.archive import build_archive
from devcloud.readiness import AGENTS
from devcloud.settings import Settings
from tests import archives
from tests.cloud import leaks
from tests.cloud.guests import until
from tests.cloud.owners import ask_placement, engine_of
from tests.cloud.servers import Servers, address, fault, pings

Upload = Callable[..., str]


@pytest.fixture(autouse=True)
def nothing_left(cloud: Settings, admin: Connection, servers: Servers) -> Any:
    """Check that each test leaves nothing behind, whether its servers boot or fail."""
    before = leaks.inventory(cloud, admin)
    yield
    assert leaks.leaked_for_good(cloud, admin, before) == {}


LAYER = archives.tar({"bin/x": b"x"})


def save(**changes: Any) -> bytes:
    return archives.tar(archives.docker_files(archives.config([LAYER], **changes), [LAYER]))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"this is not an archive" * 100, "archive"),
        (b"x", "archive|damaged"),
        (save()[:700], "it is truncated"),
        (save(architecture="arm64"), "arm64"),
        (save(config={}), "no command"),
    ],
    ids=["not an archive", "one byte", "truncated", "other architecture", "no command"],
)
def test_bad_images(
    servers: Servers, image: Upload, cloud: Settings, content: bytes, text: str
) -> None:
    log = cloud.log / "nova-compute-host1.log"
    begin = log.stat().st_size
    server = servers.create("bad-image", image=image(content))
    assert server.status == "ERROR"
    assert re.search(text, fault(server)), fault(server)
    servers.delete_all()
    with log.open() as lines:
        lines.seek(begin)
        check_refusal([line for line in lines if server.id in line])


def check_refusal(told: list[str]) -> None:
    """Check that the driver has logged one warning about a server, and nobody a traceback."""
    ours = [line for line in told if re.search(" (WARNING|ERROR) novadocker", line)]
    assert len(ours) == 1, ours
    assert " WARNING " in ours[0]
    # Nova's manager logs every aborted build as an error.
    (error,) = [line for line in told if " ERROR " in line]
    assert "aborted" in error
    assert [line for line in told if "Traceback" in line] == []


@pytest.mark.parametrize(
    ("command", "texts"),
    [
        ("/no/such/command", ["no such file"]),
        ("sh -c 'echo first; echo boom; exit 3'", ["exit status 3", "boom"]),
        ("sh -c 'unclosed", ["os_command_line"]),
    ],
)
def test_bad_commands(
    servers: Servers, image: Upload, busybox: Path, command: str, texts: list[str]
) -> None:
    server = servers.create("bad-command", image=image(busybox, os_command_line=command))
    assert server.status == "ERROR"
    assert all(text in fault(server) for text in texts), fault(server)
    servers.delete_all()


def test_tags_of_anothers_image_do_not_move_it(
    servers: Servers, image: Upload, demo: Connection, tmp_path: Path, tenant_network: str
) -> None:
    victim = servers.create("victim")
    glance = demo.image.find_image("busybox")
    name = f"novadocker/{glance.id}:{glance.checksum[:12]}"
    content = archives.tar(
        archives.docker_files(archives.config([LAYER]), [LAYER], tags=[name, "busybox:latest"])
    )
    attacker = servers.create("attacker", image=image(content))
    assert attacker.status == "ERROR"
    second = servers.create("second")
    assert second.status == "ACTIVE", fault(second)
    assert pings(tenant_network, address(victim))
    assert pings(tenant_network, address(second))
    servers.delete_all()


def test_wrong_formats(servers: Servers, image: Upload, busybox: Path) -> None:
    server = servers.create("appliance", image=image(busybox, container_format="ova"))
    assert server.status == "ERROR"
    assert "container_format" in fault(server)
    servers.delete_all()


def test_a_flavor_larger_than_the_host(servers: Servers, admin: Connection) -> None:
    flavor = admin.compute.create_flavor(name="huge", vcpus=1, ram=10_000_000, disk=1)
    try:
        server = servers.create("huge", flavor="huge")
        assert server.status == "ERROR"
        assert "No valid host" in fault(server)
        servers.delete_all()
    finally:
        admin.compute.delete_flavor(flavor)


@pytest.mark.parametrize(
    "name",
    ["with spaces and 'quotes\" $(id)", "naïve-サーバ", "x" * 255, "-.-", "UPPER_case.example.org"],
    ids=["quotes", "unicode", "255", "no hostname", "fqdn"],
)
def test_names(servers: Servers, tenant_network: str, name: str, demo: Connection) -> None:
    server = servers.create(name)
    assert server.status == "ACTIVE", fault(server)
    assert server.name == name
    assert pings(tenant_network, address(server))
    servers.delete_all()


def test_a_port_that_cannot_be_bound(servers: Servers, admin: Connection, demo: Connection) -> None:
    network = demo.network.find_network("private")
    # No mechanism driver of this cloud binds this VNIC type.
    port = admin.network.create_port(
        network_id=network.id, project_id=demo.current_project_id, binding_vnic_type="direct"
    )
    try:
        server = servers.create("unbound", networks=[{"port": port.id}])
        assert server.status == "ERROR"
        assert fault(server)
        servers.delete_all()
    finally:
        admin.network.delete_port(port)


@pytest.mark.usefixtures("long_run")
def test_neutrons_event_stays_away(cloud: Settings, servers: Servers, admin: Connection) -> None:
    host = cloud.hosts[0]
    agent = cloud.network_agent(host)
    binary = next(iter(AGENTS[cloud.network]))
    (found,) = admin.network.agents(binary=binary, host=host.name)
    supervise.control(cloud, ["stop", agent])
    try:
        server = servers.create("no-event")
    finally:
        supervise.control(cloud, ["start", agent])
    # Neutron binds no port to a host until the host's agent reports again.
    until(lambda: has_reported(admin, found))
    assert server.status == "ERROR"
    assert "did not report the ports" in fault(server), fault(server)
    servers.delete_all()


def has_reported(admin: Connection, before: Agent) -> bool:
    """Return True if an agent has reported since its restart."""
    now = admin.network.get_agent(before.id)
    # ovn-controller has no time of its start.
    restarted = now.started_at != before.started_at or before.started_at is None
    return bool(now.is_alive and restarted)


def test_the_engine_is_down(
    cloud: Settings, servers: Servers, demo: Connection, admin: Connection
) -> None:
    running = servers.create("running")
    engine = f"docker-{cloud.hosts[0].name}"
    supervise.control(cloud, ["stop", engine])
    try:
        server = servers.create("no-engine")
        assert server.status == "ERROR"
        # Nova has no other host to try, or has seen before that this one has no room.
        assert re.search("Exhausted all hosts|No valid host", fault(server)), fault(server)
        assert demo.compute.get_server(running).status == "ACTIVE"
    finally:
        supervise.control(cloud, ["start", engine])
    wait_for_engine(cloud)
    wait_for_room(admin)
    again = servers.create("engine-back")
    assert again.status == "ACTIVE", fault(again)
    servers.delete_all()


def test_a_slow_engine(cloud: Settings, servers: Servers, tenant_network: str) -> None:
    process = supervise.process_id(cloud, f"docker-{cloud.hosts[0].name}")
    server = servers.create("slow", wait=False)
    os.kill(process, signal.SIGSTOP)
    try:
        time.sleep(8)
    finally:
        os.kill(process, signal.SIGCONT)
    server = servers.settle(server)
    assert server.status == "ACTIVE", fault(server)
    assert pings(tenant_network, address(server))
    servers.delete_all()


@pytest.mark.parametrize("delay", [0.5, 1.5, 2.5])
def test_the_engine_dies_in_the_middle_of_boots(
    cloud: Settings, servers: Servers, admin: Connection, tenant_network: str, delay: float
) -> None:
    running = servers.create("bystander")
    assert running.status == "ACTIVE", fault(running)
    booting = [servers.create(f"dying-{number}", wait=False) for number in range(4)]
    time.sleep(delay)
    os.kill(supervise.process_id(cloud, f"docker-{cloud.hosts[0].name}"), signal.SIGKILL)
    wait_for_engine(cloud)
    # A resource report during the engine's outage disables the host until the next report.
    wait_for_room(admin)
    # A server whose process started at that moment may have died with the engine.
    for server in map(servers.settle, booting):
        assert fault(server) or server.status == "ACTIVE"
    assert pings(tenant_network, address(running))
    after = servers.create("after")
    assert after.status == "ACTIVE", fault(after)
    assert pings(tenant_network, address(after))
    servers.delete_all()


def wait_for_room(admin: Connection) -> None:
    """Wait until the host reports resources again, because it reports none without its engine."""
    (host,) = [found for found in admin.compute.hypervisors() if found.name == "host1"]

    def has_room() -> bool:
        inventory = ask_placement(admin, f"/resource_providers/{host.id}/inventories/VCPU")
        return bool(inventory["reserved"] < inventory["total"])

    until(has_room)


def wait_for_engine(cloud: Settings) -> None:
    def answers() -> bool:
        try:
            engine_of(cloud, cloud.hosts[0]).close()
        except docker.errors.DockerException:
            return False
        return True

    until(answers)


def test_the_image_property_gives_a_command_to_an_image_without_one(
    servers: Servers, demo: Connection, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin" / "busybox").chmod(0o755)
    target = tmp_path / "plain.tar"
    build_archive(root, target, command=[])
    made = demo.image.create_image(
        "commandless",
        filename=str(target),
        container_format="docker",
        disk_format="raw",
        os_command_line="/bin/busybox sleep 1000",
        wait=True,
    )
    try:
        server = servers.create("property", image="commandless")
        assert server.status == "ACTIVE", fault(server)
        servers.delete_all()
    finally:
        demo.image.delete_image(made)
