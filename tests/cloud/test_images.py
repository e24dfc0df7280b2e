# SPDX-License-Identifier: Apache-2.0
"""Images beyond a plain boot: snapshots, precaching for an aggregate, registries."""

import contextlib
import signal
import subprocess
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openstack.compute.v2.server import Server
from openstack.connection import Connection

from devcloud import programs, supervise
from devcloud.network import inside
from devcloud.settings import API_ADDRESS, NAMESPACE, Settings
from tests.cloud.guests import Guest, until
from tests.cloud.owners import shell
from tests.cloud.servers import Servers, address, fault, pings

SECONDS = 120
READ = "stat -c %u:%g /kept; cat /kept"


@pytest.fixture
def no_new_images(demo: Connection) -> Iterator[None]:
    """Delete the images that a test creates through Nova."""
    before = {image.id for image in demo.image.images()}
    yield
    for image in demo.image.images(visibility="private"):
        if image.id not in before:
            demo.image.delete_image(image)


@pytest.mark.usefixtures("no_new_images")
def test_snapshot_backup_shelve(
    servers: Servers, demo: Connection, engine: Any, tenant_network: str
) -> None:
    server = servers.create("original")
    assert server.status == "ACTIVE", fault(server)
    shell(engine, server, "printf data >/kept; chown 5:1000 /kept")
    made = demo.compute.create_server_image(server, "snap", wait=True, timeout=SECONDS)
    assert (made.container_format, made.disk_format) == ("docker", "raw")
    # The record of the ports' devices is not copied.
    assert "nic_" not in str(made.properties)
    copied = servers.create("copy", image="snap")
    assert copied.status == "ACTIVE", fault(copied)
    assert shell(engine, copied, READ) == "5:1000\ndata"
    assert pings(tenant_network, address(copied))
    for _ in range(2):
        demo.compute.backup_server(server, "daily", "daily", 1)
        servers.wait(server, lambda now: now.status == "ACTIVE")
        until(lambda: {i.status for i in demo.image.images(name="daily")} == {"active"}, SECONDS)
    assert len(list(demo.image.images(name="daily"))) == 1
    home = address(server)
    demo.compute.shelve_server(server)
    servers.wait(server, lambda now: now.status == "SHELVED_OFFLOADED")
    assert not engine.containers(all=True, filters={"name": f"nova-{server.id}"})
    demo.compute.unshelve_server(server)
    server = servers.wait(server, lambda now: now.status in ("ACTIVE", "ERROR"))
    assert server.status == "ACTIVE", fault(server)
    assert address(server) == home
    assert shell(engine, server, READ) == "5:1000\ndata"


@contextlib.contextmanager
def api_that_keeps(cloud: Settings, folder: Path) -> Iterator[str]:
    """Run another Nova API with deferred deletion; yield its URL."""
    more = folder / "soft.conf"
    more.write_text("[DEFAULT]\nreclaim_instance_interval = 3600\n")
    environment = {
        "OS_NOVA_CONFIG_DIR": str(cloud.etc / "nova"),
        "OS_NOVA_CONFIG_FILES": f"api-paste.ini;nova.conf;{more}",
    }
    program = programs.wsgi(
        cloud, "nova-api-soft", 8799, "nova.wsgi.osapi_compute", (), environment
    )
    url = f"http://{API_ADDRESS}:8799"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            inside(NAMESPACE, program.command),
            env={**supervise.service_environment(cloud), **environment},
            stdout=log,
            stderr=log,
        )
    try:
        until(lambda: process.poll() is not None or answers(url), SECONDS)
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
        yield f"{url}/v2.1"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(SECONDS)


def answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=SECONDS):
        return True
    return False


def test_soft_delete_and_restore(
    servers: Servers,
    demo: Connection,
    cloud: Settings,
    engine: Any,
    tenant_network: str,
    tmp_path: Path,
) -> None:
    server = servers.create("regretted")
    assert server.status == "ACTIVE", fault(server)
    shell(engine, server, "printf data >/kept; chown 5:1000 /kept")
    with api_that_keeps(cloud, tmp_path) as api:
        demo.session.delete(f"{api}/servers/{server.id}")
    servers.wait(server, lambda now: now.status == "SOFT_DELETED")
    found = engine.inspect_container(f"nova-{server.id}")
    assert found["State"]["Status"] == "exited"
    demo.compute.restore_server(server)
    restored = servers.wait(server, lambda now: now.status in ("ACTIVE", "ERROR"))
    assert restored.status == "ACTIVE", fault(restored)
    assert engine.inspect_container(f"nova-{server.id}")["Id"] == found["Id"]
    assert shell(engine, server, READ) == "5:1000\ndata"
    assert address(restored) == address(server)
    assert pings(tenant_network, address(server))


def test_rescue(
    servers: Servers, demo: Connection, cloud: Settings, engine: Any, tenant_network: str
) -> None:
    def rescue(**options: str) -> Server:
        demo.compute.rescue_server(server, **options)
        found = servers.wait(server, lambda now: now.status in ("RESCUE", "ERROR"))
        assert found.status == "RESCUE", fault(found)
        return found

    server = servers.create("broken", flavor="d1.small", key_name="demo")
    assert server.status == "ACTIVE", fault(server)
    own = engine.inspect_container(f"nova-{server.id}")["Id"]
    shell(engine, server, "printf broken >/kept")
    guest = Guest(cloud, rescue(image=demo.image.find_image("debian").id), tenant_network)
    guest.wait()
    assert guest.ask("cat /rescue/kept; test -e /kept || echo alone") == "brokenalone\n"
    guest.ask("sudo sh -c 'echo mended >/rescue/kept'")
    demo.compute.unrescue_server(server)
    server = servers.wait(server, lambda now: now.status in ("ACTIVE", "ERROR"))
    assert server.status == "ACTIVE", fault(server)
    assert engine.inspect_container(f"nova-{server.id}")["Id"] == own
    assert shell(engine, server, "cat /kept") == "mended\n"
    assert pings(tenant_network, address(server))
    # Delete the server during a second rescue, which uses the server's own image.
    rescue()
    servers.delete(server)
    assert not engine.containers(all=True, filters={"name": f"nova-{server.id}"})


def test_an_aggregate_has_an_image_before_any_server(
    admin: Connection, cloud: Settings, engine: Any, image: Callable[..., str], busybox: Path
) -> None:
    image_id = admin.image.find_image(image(busybox)).id
    aggregate = admin.compute.create_aggregate(name=f"test-{uuid.uuid4().hex[:8]}")
    try:
        admin.compute.add_host_to_aggregate(aggregate, cloud.hosts[0].name)
        admin.compute.aggregate_precache_images(aggregate, [image_id])
        until(lambda: engine.images(f"novadocker/{image_id}"), SECONDS)
    finally:
        admin.compute.remove_host_from_aggregate(aggregate, cloud.hosts[0].name)
        admin.compute.delete_aggregate(aggregate)


def test_an_image_of_the_registry(
    servers: Servers, demo: Connection, busybox: Path, engine: Any
) -> None:
    registry = f"{API_ADDRESS}:5001"
    name = f"{registry}/test/busybox:v1"
    subprocess.run(
        [
            *("skopeo", "copy", "--quiet", "--dest-tls-verify=false"),
            *(f"docker-archive:{busybox}", f"docker://{name}"),
        ],
        check=True,
    )
    made = []
    try:
        for reference in (name, "evil.example.com/test/busybox"):
            created = demo.image.create_image(
                f"test-{uuid.uuid4().hex[:8]}",
                container_format="docker",
                disk_format="raw",
                docker_image=reference,
            )
            made.append(created)
            headers = {"Content-Type": "application/octet-stream"}
            demo.image.put(f"/images/{created.id}/file", data=b"", headers=headers)
        server = servers.create("pulled", image=made[0].name)
        assert server.status == "ACTIVE", fault(server)
        # The engine has the image only under the driver's name, not under the registry's.
        found = engine.inspect_image(engine.inspect_container(f"nova-{server.id}")["Image"])
        assert f"novadocker/{made[0].id}" in {tag.split(":")[0] for tag in found["RepoTags"]}
        assert not [tag for tag in found["RepoTags"] if not tag.startswith("novadocker/")]
        assert found["RepoDigests"] == []
        refused = servers.create("refused", image=made[1].name)
        assert "evil.example.com are not allowed" in fault(refused)
    finally:
        servers.delete_all()
        for found in made:
            demo.image.delete_image(found)
