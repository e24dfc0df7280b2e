# SPDX-License-Identifier: Apache-2.0
"""The engine's events as Nova is told of them."""

import queue
from collections.abc import Callable, Iterator

import docker
import pytest
from nova.virt import event as virtevent

from novadocker import naming
from novadocker.virt.docker import events
from novadocker.virt.docker.engine import Engine
from novadocker.virt.docker.listing import Listing

Next = Callable[[], int]


@pytest.fixture
def server(docker_client: docker.APIClient, busybox_image: str, instance_uuid: str) -> str:
    """The name of a container with a server's labels."""
    name = naming.container_name(instance_uuid)
    docker_client.create_container(
        busybox_image,
        name=name,
        network_disabled=True,
        labels={naming.LABEL_SCHEMA: naming.SCHEMA, naming.LABEL_UUID: instance_uuid},
    )
    return name


@pytest.fixture
def told(engine_url: str, instance_uuid: str) -> Iterator[Next]:
    """Return the next transition that Nova is told of."""
    engine = Engine(engine_url, 60, 60)
    seen: queue.SimpleQueue[virtevent.LifecycleEvent] = queue.SimpleQueue()
    watcher = events.Events(engine, Listing(engine), seen.put)
    watcher.start()

    def take() -> int:
        found = seen.get(timeout=30)
        assert found.get_instance_uuid() == instance_uuid
        return int(found.get_transition())

    yield take
    watcher.stop()


def test_a_server_lives_and_dies(docker_client: docker.APIClient, server: str, told: Next) -> None:
    docker_client.start(server)
    assert told() == virtevent.EVENT_LIFECYCLE_STARTED
    docker_client.pause(server)
    assert told() == virtevent.EVENT_LIFECYCLE_PAUSED
    docker_client.unpause(server)
    assert told() == virtevent.EVENT_LIFECYCLE_RESUMED
    # a restart: one event, and that is no stop
    docker_client.restart(server, timeout=0)
    assert told() == virtevent.EVENT_LIFECYCLE_STARTED
    docker_client.kill(server)
    assert told() == virtevent.EVENT_LIFECYCLE_STOPPED
