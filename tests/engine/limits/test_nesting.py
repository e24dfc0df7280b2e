# SPDX-License-Identifier: Apache-2.0
"""A Docker Engine in a server with a user namespace, without privilege over the host."""

import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import docker
import pytest

from novadocker.virt.docker.limits import isolation
from novadocker.virt.docker.model import ContainerSpec, Mount
from tests.engine import attacks, control_groups, machines, namespaced
from tests.engine.engines import OwnEngine
from tests.engine.machines import Machine

_PROGRAMS = ("containerd", "containerd-shim-runc-v2", "docker", "dockerd", "runc")
_BUILD = """
set -e
mkdir /build
cd /build
echo 'FROM inner' >Dockerfile
echo 'RUN echo "made inside" >/made' >>Dockerfile
echo 'CMD ["cat", "/made"]' >>Dockerfile
docker build --quiet --tag made . >/dev/null 2>&1
docker run --rm made
"""
_LIMITED = """
docker run --rm --memory 32m --cpus 0.5 --pids-limit 20 inner sh -c '
cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max'
"""


@pytest.fixture(scope="module", params=namespaced.KINDS)
def outer(
    request: pytest.FixtureRequest, session_engine: OwnEngine, privileged: None, state_folder: Path
) -> Iterator[OwnEngine]:
    """Yield an engine whose servers can have a user namespace."""
    with namespaced.engine_of_kind(request.param, session_engine, state_folder, "nesting") as found:
        yield found


@pytest.fixture(scope="module")
def client(outer: OwnEngine) -> Iterator[docker.APIClient]:
    programs = [str(shutil.which(name, path="/usr/sbin:/usr/bin")) for name in _PROGRAMS]
    image = _with_file(machines.archive(*programs), "inner.tar", machines.archive())
    with closing(docker.APIClient(base_url=outer.url, timeout=60)) as found:
        found.import_image_from_data(image, repository="nesting", tag="test")
        yield found


def _spec(**asked: str) -> ContainerSpec:
    return ContainerSpec(
        name="",
        image_id="nesting:test",
        hostname="nesting",
        labels={},
        runtime="",
        limits=replace(machines.LIMITS, memory_bytes=1 << 30, pids=500),
        isolation=isolation.isolation({f"docker:{name}": value for name, value in asked.items()}),
        console_log_max_mb=1,
        entrypoint=("sleep", "1000"),
        # As lxcfs's, which must not keep the kernel from mounting /proc inside.
        mounts=(Mount("/proc/version", "/proc/uptime"),),
    )


@pytest.fixture(scope="module")
def server(outer: OwnEngine, client: docker.APIClient, state_folder: Path) -> Iterator[Machine]:
    """Yield a server with an engine that has the image ``inner``."""
    mark = (state_folder / "mark").read_text()
    instance_uuid = f"{mark}-0000-4000-8000-000000000001"
    with namespaced.server(outer, client, instance_uuid, _spec(nesting="true")) as found:
        # There are no iptables in the image.
        start = (
            "dockerd --iptables=false --userland-proxy=false --log-level=error >/dockerd.log 2>&1 &"
        )
        wait = "until docker version >/dev/null 2>&1; do sleep 0.1; done"
        assert found.shell(f"{start} timeout 60 sh -c '{wait}'")[0] == 0, found.shell(
            "cat /dockerd.log"
        )
        assert found.run("docker", "import", "/inner.tar", "inner")[0] == 0
        yield found


def _with_file(root: bytes, name: str, content: bytes) -> bytes:
    """Return a tar archive with one more file."""
    buffer = io.BytesIO(root)
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _limits(server: Machine) -> list[str]:
    """Return the limits of memory and processes, and the share of CPUs."""
    files = (
        ("memory.limit_in_bytes", "memory.max"),
        ("pids.max", "pids.max"),
        ("cpu.shares", "cpu.weight"),
    )
    return [control_groups.value(server.pid, *names) for names in files]


def test_an_image_is_built_and_run_inside(server: Machine) -> None:
    assert server.shell(_BUILD) == (0, "made inside")
    code, output = server.shell("docker info --format '{{.Driver}}'")
    assert (code, output) == (0, "overlay2")
    assert "docker0" in server.run("ip", "address")[1]
    assert server.shell(_LIMITED) == (0, str(32 << 20))


def test_root_of_the_server_can_do_no_more_to_the_host(server: Machine) -> None:
    assert attacks.wrong_answers(server.run, os.getpid()) == {}


def test_root_of_a_nested_container_can_do_no_more_to_the_host(server: Machine) -> None:
    def run(*command: str) -> tuple[int, str]:
        return server.run("docker", "run", "--rm", "inner", *command)

    assert attacks.wrong_answers(run, os.getpid()) == {}


def test_root_of_a_privileged_nested_container_changes_its_own_limits_only(
    server: Machine,
) -> None:
    options = ["--privileged", "--pid=host", "--network=host", "--volume=/:/server"]

    def run(*command: str) -> tuple[int, str]:
        return server.run("docker", "run", "--rm", *options, "inner", *command)

    before = _limits(server)
    wrong = attacks.wrong_answers(run, os.getpid())
    # These are the limits of the group that the engine inside made.
    own = {"raise_the_limit_of_memory", "raise_the_limit_of_processes", "raise_the_share_of_cpus"}
    assert wrong.keys() <= own
    assert _limits(server) == before
