# SPDX-License-Identifier: Apache-2.0
"""Debian's Docker, Podman and systemd-nspawn in a server with systemd and ids of its own.

The system is built only with ``--stock``, because that takes minutes.
"""

import os
from collections.abc import Iterator

import docker
import pytest

from novadocker.privsep.guest import runtime
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.guest import identity
from novadocker.virt.docker.model import Limits
from tests.engine import attacks, namespaced, systemd_image
from tests.engine.systems import Server

LIMITS = Limits(cpu_shares=1024, memory_bytes=2 << 30, swap_bytes=0, pids=2000)
# A root directory for images and for systemd-nspawn.
ROOT = """
mkdir -p /root/system/bin /root/system/etc /root/system/usr
cp /bin/busybox /root/system/bin
touch /root/system/etc/os-release
"""
DOCKER = """
tar -C /root/system -c . | docker import - base >/dev/null
mkdir -p /root/build
cd /root/build
echo 'FROM base' >Dockerfile
echo 'RUN ["/bin/busybox", "touch", "/made"]' >>Dockerfile
docker build --quiet --tag made . >/dev/null
docker run --rm --publish 8080:80 made /bin/busybox ls /made
"""
NAT = "iptables --table nat --list-rules | grep --count MASQUERADE"
PODMAN = """
tar -C /root/system -c . | podman import --quiet - base >/dev/null
podman run --rm base /bin/busybox echo from podman
"""
NSPAWN = """
systemd-nspawn --quiet --private-users=no --private-network --directory=/root/system \
    /bin/busybox echo from nspawn
"""


@pytest.fixture
def server(
    request: pytest.FixtureRequest,
    engine: Engine,
    engine_url: str,
    docker_client: docker.APIClient,
    home_network: str,
    instance_uuid: str,
) -> Iterator[Server]:
    if not request.config.getoption("--stock"):
        pytest.skip("only with --stock")
    archive = systemd_image.engines_archive(home_network)
    client = docker.APIClient(base_url=engine_url, timeout=600)
    client.import_image(str(archive), repository="engines", tag="test")
    image = client.inspect_image("engines:test")["Id"]
    runtime.create_own_namespace(instance_uuid, namespaced.FIRST, 65536)
    nesting = {"docker:nesting": "true"}
    made = Server(engine, docker_client, image, instance_uuid, LIMITS, nesting)
    files = identity.etc_files(instance_uuid, "sd1", "", ["127.0.0.1"], [])
    runtime.bind_container(made.id, instance_uuid, etc_files=files)
    made.start()
    yield made
    client.remove_container(made.id, force=True, v=True)
    runtime.delete_namespace(instance_uuid)
    client.remove_image(image, force=True)
    client.close()


def test_engines_inside(server: Server) -> None:
    def shell(text: str) -> str:
        return server.run("timeout", "120", "sh", "-c", text).strip()

    assert server.state() == "running", shell("systemctl --failed --no-pager")
    assert shell("systemctl is-active docker") == "active"
    shell(ROOT)
    assert shell(DOCKER).endswith("/made")
    assert shell("docker info --format '{{.Driver}}'") == "overlay2"
    assert int(shell(NAT)) > 0
    # With cgroup v1, Podman warns of the hierarchy that the server may not divide.
    assert shell(PODMAN).endswith("from podman")
    assert shell(NSPAWN) == "from nspawn"

    def run(*command: str) -> tuple[int, str]:
        return 0, server.run(*command).strip()

    assert attacks.wrong_answers(run, os.getpid()) == {}
