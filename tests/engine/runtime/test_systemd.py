# SPDX-License-Identifier: Apache-2.0
"""A Debian with systemd as the container's first process, without privileges."""

from collections.abc import Iterator

import docker
import pytest
from oslo_utils import timeutils

from novadocker.privsep.guest import runtime
from novadocker.privsep.network import namespace
from novadocker.virt.docker.containers import lifecycle
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.limits import isolation
from novadocker.virt.docker.model import ContainerSpec, Limits
from tests.engine import systemd_image

UNIT = b"""[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo the service ran >/dev/console'
[Install]
WantedBy=multi-user.target
"""


@pytest.fixture(scope="module")
def image(engine_url: str, home_network: str) -> Iterator[str]:
    client = docker.APIClient(base_url=engine_url, timeout=600)
    client.import_image(str(systemd_image.archive(home_network)), repository="systemd", tag="test")
    yield client.inspect_image("systemd:test")["Id"]
    client.remove_image("systemd:test", force=True)
    client.close()


def read_until(client: docker.APIClient, container: str, text: bytes, since: str) -> None:
    """Read a container's output since a moment until it contains a text."""
    seen = b""
    start = timeutils.parse_isotime(since[:26] + "Z").timestamp()
    lines = client.logs(container, stream=True, follow=True, since=start)
    for part in lines:
        seen += part
        if text in seen:
            lines.close()
            return
    raise AssertionError(seen.decode())


def test_systemd(
    image: str, engine_url: str, docker_client: docker.APIClient, instance_uuid: str
) -> None:
    engine = Engine(engine_url, timeout=60, load_timeout=60)
    container = engine.create_container(
        ContainerSpec(
            name=f"nova-{instance_uuid}",
            image_id=image,
            hostname="sd1",
            labels={},
            runtime="novadocker",
            limits=Limits(cpu_shares=1024, memory_bytes=1 << 28, swap_bytes=0, pids=200),
            isolation=isolation.isolation({}),
            console_log_max_mb=1,
            entrypoint=("/sbin/init",),
            stop_signal="SIGRTMIN+3",
            systemd=True,
        )
    )
    namespace.wire_nics(instance_uuid, [])
    machine_id = instance_uuid.replace("-", "")
    engine.put_files(container, {"/etc/systemd/system/hello.service": UNIT})
    try:
        runtime.bind_container(
            container, instance_uuid, etc_files={"machine-id": f"{machine_id}\n".encode()}
        )
        for _ in range(2):
            with lifecycle.started(engine, container, 0.1):
                pass

            def run(*command: str) -> str:
                call = docker_client.exec_create(container, list(command))["Id"]
                output: bytes = docker_client.exec_start(call)
                return output.decode()

            since = docker_client.inspect_container(container)["State"]["StartedAt"]
            read_until(docker_client, container, b"sd1 console", since)
            # The command waits until the boot has succeeded or failed.
            state = run("timeout", "300", "systemctl", "is-system-running", "--wait")
            assert state.strip() == "running", run("systemctl", "--failed", "--no-pager")
            console = engine.read_console(container, 100 << 10).decode()
            assert "Multi-User System" in console
            assert "sd1 console" in console
            assert run("cat", "/etc/machine-id") == f"{machine_id}\n"
            assert run("hostname") == "sd1\n"
            # The tenant's own unit has its own control group.
            assert run("systemctl", "start", "hello.service") == ""
            # The engine writes the console's log a moment after the service has ended.
            read_until(docker_client, container, b"the service ran", since)
            assert "the service ran" in engine.read_console(container, 100 << 10).decode()
            limit = "/sys/fs/cgroup/memory/memory.limit_in_bytes"
            limit = run("sh", "-c", f"ls {limit} /sys/fs/cgroup/memory.max 2>/dev/null").strip()
            assert run("cat", limit) == "268435456\n"
            assert "rror" in run("sh", "-c", f"echo 1073741824 >{limit} || echo error")
            assert run("cat", limit) == "268435456\n"
            # The container sees no control group of the host.
            assert run("cat", "/proc/1/cgroup").count("docker") == 0
            lifecycle.stop(engine, container, 30)
            found = docker_client.inspect_container(container)["State"]
            assert found["ExitCode"] == 0
            assert "Exiting container" in engine.read_console(container, 100 << 10).decode()
    finally:
        runtime.delete_namespace(instance_uuid)
