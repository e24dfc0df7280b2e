# SPDX-License-Identifier: Apache-2.0
"""A Debian with systemd as the container's first process, without privileges."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator

import docker
import pytest

from novadocker.privsep.guest import runtime
from novadocker.privsep.network import namespace
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.model import Limits
from tests.engine import systemd_image
from tests.engine.engines import remove_containers
from tests.engine.systems import Server, read_until

LIMITS = Limits(cpu_shares=1024, memory_bytes=1 << 28, swap_bytes=0, pids=200)
TMP_UNIT = "etc/systemd/system/tmp.mount"
TMP_WANTS = "etc/systemd/system/local-fs.target.wants/tmp.mount"
UNIT = b"""[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo the service ran >/dev/console'
[Install]
WantedBy=multi-user.target
"""

# These settings need privileges.
CONFINED = b"""[Service]
Type=oneshot
ExecStart=/bin/true
User=nobody
PrivateUsers=yes
BindReadOnlyPaths=/dev/log:/srv/log
ProtectKernelTunables=yes
SystemCallFilter=@system-service
"""


@pytest.fixture(scope="module")
def image(engine_url: str, home_network: str) -> Iterator[str]:
    client = docker.APIClient(base_url=engine_url, timeout=600)
    client.import_image(str(systemd_image.archive(home_network)), repository="systemd", tag="test")
    yield client.inspect_image("systemd:test")["Id"]
    client.remove_image("systemd:test", force=True)
    client.close()


@pytest.fixture
def create(
    engine_url: str, docker_client: docker.APIClient, instance_uuid: str
) -> Iterator[Callable[[str], Server]]:
    """Yield a function that returns a server of an image."""
    engine = Engine(engine_url, timeout=60, load_timeout=60)
    namespace.wire_nics(instance_uuid, [])
    yield lambda image: Server(engine, docker_client, image, instance_uuid, LIMITS)
    runtime.delete_namespace(instance_uuid)


def test_systemd(
    image: str, create: Callable[[str], Server], docker_client: docker.APIClient
) -> None:
    server = create(image)
    engine, run = server.engine, server.run
    machine_id = server.instance_uuid.replace("-", "")
    units = {"hello": UNIT, "confined": CONFINED}
    engine.put_files(
        server.id, {f"/etc/systemd/system/{name}.service": unit for name, unit in units.items()}
    )
    runtime.bind_container(
        server.id, server.instance_uuid, etc_files={"machine-id": f"{machine_id}\n".encode()}
    )
    for end in ("halt", "reboot", "poweroff"):
        server.start()
        since = docker_client.inspect_container(server.id)["State"]["StartedAt"]
        assert server.state() == "running", run("systemctl", "--failed", "--no-pager")
        console = engine.read_console(server.id, 100 << 10).decode()
        assert "Multi-User System" in console
        assert "sd1 console" in console
        assert run("cat", "/etc/machine-id") == f"{machine_id}\n"
        assert run("hostname") == "sd1\n"
        # The tenant's own unit has its own control group.
        assert run("systemctl", "start", "hello.service") == ""
        assert run("systemctl", "start", "confined.service") == ""
        # The engine writes the console's log a moment after the service has ended.
        read_until(docker_client, server.id, b"the service ran", since)
        assert "the service ran" in engine.read_console(server.id, 100 << 10).decode()
        limit = "/sys/fs/cgroup/memory/memory.limit_in_bytes"
        limit = run("sh", "-c", f"ls {limit} /sys/fs/cgroup/memory.max 2>/dev/null").strip()
        assert run("cat", limit) == "268435456\n"
        assert "rror" in run("sh", "-c", f"echo 1073741824 >{limit} || echo error")
        assert run("cat", limit) == "268435456\n"
        # The container sees no control group of the host.
        assert run("cat", "/proc/1/cgroup").count("docker") == 0
        server.stop(end)


def test_hostnamectl(
    image: str, create: Callable[[str], Server], docker_client: docker.APIClient
) -> None:
    """It reports that the kernel keeps the name, but writes the name for the next start."""
    server = create(image)
    names = {"hostname": b"sd1\n", "hosts": b"127.0.0.1 localhost\n"}
    runtime.bind_container(server.id, server.instance_uuid, etc_files=names)
    server.start()
    assert server.state() == "running", server.run("systemctl", "--failed", "--no-pager")
    answer = server.run("hostnamectl", "set-hostname", "web-2")
    assert answer == "Could not set static hostname: Access denied\n"
    assert server.run("cat", "/etc/hostname") == "web-2\n"
    assert server.run("hostname") == "sd1\n"
    assert server.state() == "running", server.run("systemctl", "--failed", "--no-pager")
    server.stop()
    server.start()
    since = docker_client.inspect_container(server.id)["State"]["StartedAt"]
    read_until(docker_client, server.id, b"web-2 console", since)
    assert server.run("hostname") == "web-2\n"
    assert server.run("hostnamectl", "hostname") == "web-2\n"
    server.stop()


def test_the_usual_recipe_for_systemd(
    image: str,
    create: Callable[[str], Server],
    docker_client: docker.APIClient,
    engine_url: str,
) -> None:
    """Boot an image with the volumes of many recipes, and with /tmp in memory."""
    draft = docker_client.create_container(image, "sh")["Id"]
    docker_client.put_archive(
        draft,
        "/",
        links(
            {TMP_WANTS: "/usr/share/systemd/tmp.mount", TMP_UNIT: "/usr/share/systemd/tmp.mount"}
        ),
    )
    volumes = json.dumps(["/sys/fs/cgroup", "/run", "/run/lock", "/tmp"])
    made = docker_client.commit(draft, changes=f"VOLUME {volumes}")["Id"]
    try:
        server = create(made)
        runtime.bind_container(server.id, server.instance_uuid)
        server.start()
        assert server.state() == "running", server.run("systemctl", "--failed", "--no-pager")
        assert server.run("systemctl", "is-active", "tmp.mount") == "active\n"
        mounted = server.run("findmnt", "-no", "FSTYPE,OPTIONS", "/tmp").split()
        assert mounted[0] == "tmpfs"
        assert {"rw", "nosuid", "nodev", "size=131072k"} <= set(mounted[1].split(","))
        assert server.run("findmnt", "-no", "FSTYPE", "/run") == "tmpfs\n"
        server.stop()
    finally:
        remove_containers(engine_url)
        docker_client.remove_image(made)


def links(targets: dict[str, str]) -> bytes:
    """Return a tar archive of symbolic links."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, target in targets.items():
            entry = tarfile.TarInfo(path)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return buffer.getvalue()
