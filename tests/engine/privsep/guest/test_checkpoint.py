# SPDX-License-Identifier: Apache-2.0
"""Memory of containers on the disk, by runc and CRIU."""

import time
from collections.abc import Iterator
from typing import Any

import docker
import pytest

from novadocker.privsep.guest import checkpoint, runtime
from novadocker.privsep.network import namespace
from tests.engine import packages

HOST = "novadocker-test"
COUNT = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"


@pytest.fixture(scope="session")
def criu(home_network: str) -> str:
    return packages.criu(home_network)


@pytest.fixture
def wired(instance_uuid: str) -> Iterator[str]:
    """Yield an instance with a namespace without devices."""
    namespace.wire_nics(instance_uuid, [])
    yield instance_uuid
    checkpoint.discard(HOST, instance_uuid)
    runtime.delete_namespace(instance_uuid)


def create(client: docker.APIClient, image: str, instance_uuid: str, **options: Any) -> str:
    found: str = client.create_container(
        image,
        network_disabled=True,
        host_config=client.create_host_config(runtime="novadocker", network_mode="none"),
        **options,
    )["Id"]
    runtime.bind_container(found, instance_uuid)
    return found


def state(client: docker.APIClient, container: str) -> dict[str, Any]:
    found: dict[str, Any] = client.inspect_container(container)["State"]
    return found


def last_number(client: docker.APIClient, container: str) -> int:
    return int(client.logs(container).split()[-1])


def test_the_memory_goes_to_the_disk_and_back(
    docker_client: docker.APIClient, busybox_image: str, wired: str, criu: str
) -> None:
    container = create(docker_client, busybox_image, wired, command=["sh", "-c", COUNT])
    docker_client.start(container)
    time.sleep(1)
    assert checkpoint.why_impossible(criu) == ""
    before = state(docker_client, container)
    docker_client.pause(container)
    checkpoint.dump(HOST, wired, container, before["Pid"], before["StartedAt"], criu)
    assert state(docker_client, container)["Paused"]
    last = last_number(docker_client, container)
    assert checkpoint.end_processes(HOST, wired, container)
    docker_client.unpause(container)
    assert docker_client.wait(container, timeout=30)["StatusCode"] == 137
    assert last_number(docker_client, container) == last

    runtime.bind_container(container, wired)
    assert checkpoint.restore_next(HOST, wired, container, before["StartedAt"], criu)
    docker_client.start(container)
    time.sleep(1)
    numbers = [int(word) for word in docker_client.logs(container).split()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert numbers[-1] > last
