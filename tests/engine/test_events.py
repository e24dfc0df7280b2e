# SPDX-License-Identifier: Apache-2.0
"""Lifecycle events from the engine to Nova."""

import os
import queue
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import pytest
from nova.virt import event as virtevent

from novadocker import naming
from novadocker.virt.docker import events
from novadocker.virt.docker.containers.servers import ServerList
from novadocker.virt.docker.engine.client import Engine
from tests.engine.busybox import busybox_archive
from tests.engine.engines import OwnEngine, remove_containers
from tests.suspending import suspend
from tests.waiting import until

Next = Callable[[], int]


@pytest.fixture
def server(docker_client: docker.APIClient, busybox_image: str, instance_uuid: str) -> str:
    """Return the name of a container with a server's labels."""
    name = naming.container_name(instance_uuid)
    docker_client.create_container(
        busybox_image,
        name=name,
        network_disabled=True,
        labels={naming.LABEL_SCHEMA: naming.SCHEMA, naming.LABEL_UUID: instance_uuid},
    )
    return name


@pytest.fixture
def rebooted() -> queue.SimpleQueue[str]:
    """Return the queue of the servers that rebooted from inside."""
    return queue.SimpleQueue()


@contextmanager
def watched(url: str, instance_uuid: str, rebooted: queue.SimpleQueue[str]) -> Iterator[Next]:
    """Watch an engine; yield a function that returns Nova's next lifecycle event."""
    engine = Engine(url, 60, 60)
    seen: queue.SimpleQueue[virtevent.LifecycleEvent] = queue.SimpleQueue()
    watcher = events.Events(
        engine,
        ServerList(engine),
        seen.put,
        lambda _: None,
        lambda _: None,
        rebooted.put,
        lambda _: set(),
    )
    watcher.start()

    def take() -> int:
        # The engine still has the deletions of other tests.
        while (found := seen.get(timeout=30)).get_instance_uuid() != instance_uuid:
            assert found.get_transition() == virtevent.EVENT_LIFECYCLE_STOPPED
        return int(found.get_transition())

    yield take
    watcher.stop()


@pytest.fixture
def told(engine_url: str, instance_uuid: str, rebooted: queue.SimpleQueue[str]) -> Iterator[Next]:
    """Watch the session's engine; yield a function that returns Nova's next lifecycle event."""
    with watched(engine_url, instance_uuid, rebooted) as take:
        yield take


def test_a_server_lives_and_dies(docker_client: docker.APIClient, server: str, told: Next) -> None:
    docker_client.start(server)
    assert told() == virtevent.EVENT_LIFECYCLE_STARTED
    docker_client.pause(server)
    assert told() == virtevent.EVENT_LIFECYCLE_PAUSED
    docker_client.unpause(server)
    assert told() == virtevent.EVENT_LIFECYCLE_RESUMED
    # A restart causes one event, which is not a stop.
    docker_client.restart(server, timeout=0)
    assert told() == virtevent.EVENT_LIFECYCLE_STARTED
    docker_client.kill(server)
    assert told() == virtevent.EVENT_LIFECYCLE_STOPPED


def test_a_slow_restart_is_no_stop(
    state_folder: Path, new_instance_uuid: Callable[[], str]
) -> None:
    """The engine lists the container as ended until runc has started it."""
    folder = state_folder / "slow"
    folder.mkdir()
    runtime = folder / "runtime"
    runtime.write_text(
        f'#!/bin/sh\ncase " $* " in *" start "*) sleep {2 * events._HELD_SECONDS};; esac\n'
        'exec runc "$@"\n'
    )
    runtime.chmod(0o755)
    slow = OwnEngine(folder, runtimes={"slow": {"path": str(runtime)}})
    instance_uuid = new_instance_uuid()
    name = naming.container_name(instance_uuid)
    with docker.APIClient(slow.url, timeout=60) as client:
        client.import_image_from_data(busybox_archive(), repository="busybox", tag="test")
        client.create_container(
            "busybox:test",
            ["sleep", "1d"],
            name=name,
            network_disabled=True,
            labels={naming.LABEL_SCHEMA: naming.SCHEMA, naming.LABEL_UUID: instance_uuid},
            host_config=client.create_host_config(runtime="slow"),
        )
        client.start(name)
        with watched(slow.url, instance_uuid, queue.SimpleQueue()) as told:
            client.restart(name, timeout=0)
            assert told() == virtevent.EVENT_LIFECYCLE_STARTED
            client.kill(name)
            assert told() == virtevent.EVENT_LIFECYCLE_STOPPED
    remove_containers(slow.url)
    slow.stop()


@pytest.mark.usefixtures("told")
def test_a_label_does_not_hide_a_reboot(
    docker_client: docker.APIClient,
    busybox_image: str,
    instance_uuid: str,
    rebooted: queue.SimpleQueue[str],
) -> None:
    """The engine lists the exit status only after it has reported the end."""
    name = naming.container_name(instance_uuid)
    labels = {naming.LABEL_SCHEMA: naming.SCHEMA, naming.LABEL_UUID: instance_uuid, "exitCode": "0"}
    docker_client.create_container(
        busybox_image, ["sh", "-c", "exit 129"], name=name, network_disabled=True, labels=labels
    )
    for _ in range(5):
        docker_client.start(name)
        assert rebooted.get(timeout=30) == instance_uuid


def test_nothing_is_lost_between_two_streams(
    docker_client: docker.APIClient, server: str, told: Next, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_HELD_SECONDS", 0.0)
    docker_client.start(server)
    assert told() == virtevent.EVENT_LIFECYCLE_STARTED
    # The stream ends sooner than the next event arrives.
    monkeypatch.setattr(events, "_QUIET_SECONDS", 0.02)
    for _ in range(3):
        docker_client.pause(server)
        assert told() == virtevent.EVENT_LIFECYCLE_PAUSED
        docker_client.unpause(server)
        assert told() == virtevent.EVENT_LIFECYCLE_RESUMED


def test_what_happens_while_the_engine_is_away_is_told_afterwards(
    session_engine: OwnEngine, docker_client: docker.APIClient, server: str, told: Next
) -> None:
    docker_client.start(server)
    assert told() == virtevent.EVENT_LIFECYCLE_STARTED
    pid = docker_client.inspect_container(server)["State"]["Pid"]
    session_engine.kill()
    os.kill(pid, signal.SIGKILL)
    session_engine.start()
    assert told() == virtevent.EVENT_LIFECYCLE_STOPPED


def test_an_engine_that_hangs_is_reported(
    session_engine: OwnEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_QUIET_SECONDS", 0.5)
    engine = Engine(session_engine.url, 2, 2)
    answers: list[str | None] = []
    watcher = events.Events(
        engine,
        ServerList(engine),
        lambda _: None,
        lambda _: None,
        answers.append,
        lambda _: None,
        lambda _: set(),
    )
    watcher.start()
    try:
        suspend(session_engine.pid)
        until(lambda: answers)
    finally:
        os.kill(session_engine.pid, signal.SIGCONT)
    until(lambda: answers[-1] is None)
    watcher.stop()
    assert "does not answer" in str(answers[0])


def test_out_of_memory(
    docker_client: docker.APIClient,
    busybox_image: str,
    instance_uuid: str,
    told: Next,
    caplog: pytest.LogCaptureFixture,
) -> None:
    name = naming.container_name(instance_uuid)
    docker_client.create_container(
        busybox_image,
        # The command doubles a text until the memory is full.
        ["sh", "-c", "x=0123456789; while :; do x=$x$x; done"],
        name=name,
        network_disabled=True,
        labels={naming.LABEL_SCHEMA: naming.SCHEMA, naming.LABEL_UUID: instance_uuid},
        host_config=docker_client.create_host_config(mem_limit="16m", memswap_limit="16m"),
    )
    docker_client.start(name)
    while told() != virtevent.EVENT_LIFECYCLE_STOPPED:
        pass
    # The event of the out-of-memory kill may follow the event of the stop.
    killed = (instance_uuid, "The kernel killed a process: out of memory")
    until(
        lambda: (
            killed
            in [(vars(line).get("instance_uuid"), line.getMessage()) for line in caplog.records]
        )
    )
