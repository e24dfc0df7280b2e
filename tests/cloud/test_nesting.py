# SPDX-License-Identifier: Apache-2.0
"""Debian's own Docker Engine, which a tenant installs in a server without privilege."""

import io
import os
import shlex
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openstack.connection import Connection

from devcloud.demo import fixed_address, ssh
from devcloud.network import inside
from devcloud.settings import Settings
from tests.cloud.guests import Guest
from tests.cloud.owners import ids_of
from tests.cloud.servers import Servers, fault
from tests.engine import attacks

SECONDS = 600
SPECS = {"docker:nesting": "true", "docker:userns": "own", "docker:pids_limit": "1000"}
# The packages start no service, because the server has no init system.
INSTALL = """
set -e
printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
dpkg --install /home/debian/packages/*.deb
setsid dockerd >/var/log/dockerd.log 2>&1 </dev/null &
timeout 120 sh -c 'until docker version; do sleep 0.2; done' || {
    cat /var/log/dockerd.log
    exit 1
}
"""
BUILD = """
set -e
tar --one-file-system -cC / --exclude=./home --exclude=./var/lib/docker . | docker import - base
mkdir /build
cd /build
echo 'FROM base' >Dockerfile
echo 'RUN echo "made inside" >/made' >>Dockerfile
docker build --tag made .
"""


@pytest.fixture
def flavor(admin: Connection) -> Iterator[str]:
    """Yield the name of a flavor whose servers may run containers."""
    name = f"nesting-{uuid.uuid4().hex[:8]}"
    made = admin.compute.create_flavor(name=name, vcpus=1, ram=1024, disk=2)
    admin.compute.create_flavor_extra_specs(made, SPECS)
    yield name
    admin.compute.delete_flavor(made)


def run(guest: Guest, command: str, content: bytes = b"") -> str:
    """Run a command in a server, which must succeed; return its output."""
    words = [*ssh(guest.settings, fixed_address(guest.server, guest.network)), command]
    done = subprocess.run(
        inside(guest.namespace, words),
        input=content,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=SECONDS,
    )
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, output[-2000:]
    return output


def packages(folder: Path, status: str) -> bytes:
    """Download Debian's Docker and what a server lacks for it; return a tar archive.

    :param status: dpkg's list of the server's packages
    """
    (folder / "partial").mkdir(parents=True)
    (folder / "status").write_text(status)
    options = (
        f"Dir::State::status={folder}/status",
        f"Dir::Cache::archives={folder}",
        "APT::Sandbox::User=root",
        "Debug::NoLocking=1",
    )
    apt = ["apt-get", "-qq", *(word for option in options for word in ("-o", option))]
    install = ["install", "--yes", "--download-only", "--no-install-recommends"]
    # The machine may have deleted the lists of packages.
    subprocess.run(["apt-get", "-qq", "update"], check=True, timeout=SECONDS)
    subprocess.run([*apt, *install, "docker.io", "iptables"], check=True, timeout=SECONDS)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for path in folder.glob("*.deb"):
            archive.add(path, path.name)
    return content.getvalue()


@pytest.mark.usefixtures("long_run")
def test_docker_in_a_server(
    servers: Servers,
    flavor: str,
    cloud: Settings,
    tenant_network: str,
    engine: Any,
    tmp_path: Path,
) -> None:
    server = servers.create("nesting", image="debian", flavor=flavor, key_name="demo")
    assert server.status == "ACTIVE", fault(server)
    assert ids_of(engine, server)[0] > 65535
    guest = Guest(cloud, server, tenant_network)
    guest.wait()
    archive = packages(tmp_path / "packages", run(guest, "cat /var/lib/dpkg/status"))
    run(guest, "mkdir packages; tar -xC packages", archive)
    run(guest, "sudo sh", INSTALL.encode())
    run(guest, "sudo sh", BUILD.encode())
    assert run(guest, "sudo docker info --format '{{.Driver}}'") == "overlay2\n"
    assert run(guest, "sudo docker run --rm made cat /made") == "made inside\n"

    def in_container(*command: str) -> tuple[int, str]:
        words = ("sudo", "docker", "run", "--rm", "made", *command)
        return 0, run(guest, shlex.join(words)).strip()

    assert attacks.wrong_answers(in_container, os.getpid()) == {}
