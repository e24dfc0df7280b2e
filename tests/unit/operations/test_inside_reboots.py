# SPDX-License-Identifier: Apache-2.0
"""Servers that reboot from inside."""

import contextlib
import datetime
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import oslo_messaging
import psutil
import pytest
from nova import exception as nova_exception
from nova import objects
from nova import utils as nova_utils
from nova.compute import power_state, task_states, vm_states
from nova.virt import event as virtevent

from novadocker import exception
from novadocker.virt.docker.driver import DockerDriver
from novadocker.virt.docker.operations import inside_reboots
from novadocker.virt.docker.operations.inside_reboots import Bound
from tests.unit.fakes import FakeHost, FakeNetwork
from tests.waiting import until


class Server:
    """A server of the driver, and the events that Nova gets of it."""

    def __init__(self, driver: DockerDriver, instance: objects.Instance, host: FakeHost) -> None:
        self.driver: Any = driver
        self.instance = instance
        self.host = host
        self.engine = host.engine
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        driver.register_event_listener(self.events.put)

    def end(self, code: int = 129, ago: float = 0.0) -> None:
        """End the container's last run."""
        now = datetime.datetime.now(datetime.UTC)
        for container_id, found in self.engine.containers.items():
            self.engine.containers[container_id] = replace(
                found,
                status="exited",
                pid=0,
                exit_code=code,
                finished_at=now - datetime.timedelta(seconds=ago),
            )

    def reboot(self) -> None:
        self.end()
        self.driver._inside_reboots.add(self.instance.uuid)

    def runs(self) -> bool:
        return [found.status for found in self.engine.containers.values()] == ["running"]

    def state(self) -> int:
        return int(self.driver.get_info(self.instance, use_cache=False).state)

    def settle(self) -> None:
        """Wait until no server is being rebooted."""
        until(lambda: not self.driver._inside_reboots._ended)


@pytest.fixture
def server(
    driver: DockerDriver,
    fake_host: FakeHost,
    instance: Any,
    image_meta: Any,
    network_info: Any,
) -> Server:
    instance.host = "host1"
    instance.vm_state = vm_states.ACTIVE
    instance.task_state = None
    fake_host.instances[instance.uuid] = instance
    driver.spawn(None, instance, image_meta, [], None, {}, network_info=network_info)  # type: ignore[arg-type]
    return Server(driver, instance, fake_host)


def test_it_starts_as_nova_starts_it(server: Server, network: FakeNetwork) -> None:
    network.wired.clear()
    network.bound.clear()
    server.host.consoles.opened[server.instance.uuid] = "c"
    server.engine.calls.clear()
    server.reboot()
    until(server.runs)
    server.settle()
    assert [call[0] for call in server.engine.calls] == ["start"]
    assert network.wired == {server.instance.uuid}
    assert network.bound
    assert network.announced == [server.instance.uuid] * 2
    assert server.host.consoles.opened == {}
    assert server.events.empty()


def held_starts(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> tuple[threading.Event, threading.Event]:
    """Hold each start of a container.

    :returns: an event that a start sets, and one that lets it go on
    """
    reached, go_on = threading.Event(), threading.Event()
    start_container = server.engine.start_container

    def start(container: str) -> None:
        reached.set()
        assert go_on.wait(60)
        start_container(container)

    monkeypatch.setattr(server.engine, "start_container", start)
    return reached, go_on


def test_nova_never_finds_it_down(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    reached, go_on = held_starts(server, monkeypatch)
    server.reboot()
    assert reached.wait(60)
    assert server.state() == power_state.RUNNING
    assert server.driver.get_info(server.instance).state == power_state.RUNNING
    # A stop by Nova has to find the server down.
    server.instance.task_state = task_states.POWERING_OFF
    assert server.state() == power_state.SHUTDOWN
    server.instance.task_state = None
    go_on.set()
    server.settle()
    assert server.state() == power_state.RUNNING
    # The list that Nova compares with is not the one from before the start.
    assert server.driver.get_info(server.instance).state == power_state.RUNNING


def test_nova_asks_before_the_engine_reports_the_reboot(server: Server) -> None:
    server.end()
    assert server.state() == power_state.RUNNING
    assert server.driver.get_info(server.instance).state == power_state.RUNNING
    server.end(ago=60.0)
    assert server.state() == power_state.SHUTDOWN
    server.end(130)
    assert server.state() == power_state.SHUTDOWN
    server.instance.vm_state = vm_states.STOPPED
    server.end()
    assert server.state() == power_state.SHUTDOWN


def test_nova_asks_with_a_list_from_before_the_start(server: Server) -> None:
    server.end()
    server.driver._services.server_list.servers()
    server.engine.start_container(next(iter(server.engine.containers)))
    assert server.driver.get_info(server.instance).state == power_state.RUNNING


def test_it_waits_for_nova_s_operation(server: Server) -> None:
    """busybox init reboots at SIGTERM, with which Nova stops it."""

    @nova_utils.synchronized(server.instance.uuid)
    def stop() -> None:
        server.reboot()
        server.instance.vm_state = vm_states.STOPPED

    stop()
    event = server.events.get(timeout=60)
    assert event.get_transition() == virtevent.EVENT_LIFECYCLE_STOPPED
    assert not server.runs()
    assert server.state() == power_state.SHUTDOWN


@pytest.mark.parametrize(
    ("values", "starts"),
    [
        ({"vm_state": vm_states.RESCUED}, True),
        ({"vm_state": vm_states.RESIZED}, True),
        ({"task_state": task_states.IMAGE_UPLOADING}, True),
        ({"vm_state": vm_states.STOPPED}, False),
        ({"vm_state": vm_states.ERROR}, False),
        ({"task_state": task_states.RESIZE_MIGRATING}, False),
        ({"task_state": task_states.DELETING}, False),
        ({"host": "host2"}, False),
    ],
)
def test_which_servers_start(server: Server, values: dict[str, Any], starts: bool) -> None:
    for name, value in values.items():
        setattr(server.instance, name, value)
    server.reboot()
    server.settle()
    assert server.runs() is starts
    # The event comes after the reboot is over.
    until(lambda: server.events.empty() is starts)


def test_a_server_that_runs_already_is_left_alone(server: Server) -> None:
    server.engine.calls.clear()
    server.driver._inside_reboots.add(server.instance.uuid)
    server.settle()
    assert server.engine.calls == []
    assert server.events.empty()


def test_a_server_that_ended_otherwise_meanwhile_is_reported(server: Server) -> None:
    server.end(130)
    server.driver._inside_reboots.add(server.instance.uuid)
    event = server.events.get(timeout=60)
    assert event.get_transition() == virtevent.EVENT_LIFECYCLE_STOPPED
    assert not server.runs()


def test_a_reboot_after_one_that_nova_stopped(server: Server) -> None:
    server.instance.vm_state = vm_states.STOPPED
    server.reboot()
    server.settle()
    server.instance.vm_state = vm_states.ACTIVE
    assert server.state() == power_state.SHUTDOWN
    server.engine.start_container(next(iter(server.engine.containers)))
    # The engine has yet to report this end.
    server.end()
    assert server.state() == power_state.RUNNING


def test_a_host_without_a_thread_left(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        server.reboot()
    event = server.events.get(timeout=60)
    assert event.get_transition() == virtevent.EVENT_LIFECYCLE_STOPPED
    assert server.state() == power_state.SHUTDOWN
    assert "Failed to reboot: can't start new thread" in caplog.text
    server.reboot()
    until(server.runs)
    server.settle()


def test_a_deleted_server(server: Server, fake_host: FakeHost) -> None:
    def read(_context: object, uuid: str) -> Any:
        raise nova_exception.InstanceNotFound(instance_id=uuid)

    server.driver._services.read_instance = read
    server.reboot()
    server.settle()
    assert not server.runs()
    assert server.events.empty()


@pytest.mark.parametrize("state", [vm_states.ERROR, vm_states.ACTIVE])
def test_a_container_that_is_gone(
    server: Server, state: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A boot whose first process ends at once has failed, and its container is deleted."""
    server.engine.containers.clear()
    server.instance.vm_state = state
    server.driver._inside_reboots.add(server.instance.uuid)
    server.settle()
    assert [line for line in caplog.records if line.levelname in ("WARNING", "ERROR")] == []
    assert not server.engine.containers


@pytest.mark.parametrize(
    "fault", [exception.PlugFailed(port_id="p", reason="no bridge"), OSError("no device")]
)
def test_a_start_that_fails_is_a_stop(
    server: Server, network: FakeNetwork, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    network.failure = fault
    server.reboot()
    event = server.events.get(timeout=60)
    assert event.get_transition() == virtevent.EVENT_LIFECYCLE_STOPPED
    assert server.state() == power_state.SHUTDOWN
    assert "Failed to reboot: " in caplog.text


def test_a_fault_of_the_driver_does_not_leave_it_running_for_nova(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    server.driver._services.read_instance = None
    server.reboot()
    server.settle()
    until(lambda: seen)
    assert server.state() == power_state.SHUTDOWN


def test_a_first_process_that_always_ends_so(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell ends with 129, too, if its last command was ended by SIGHUP."""
    looped: list[str] = []
    monkeypatch.setattr(server.driver._inside_reboots, "_looped", looped.append)
    starts = 0
    while server.events.empty():
        server.reboot()
        server.settle()
        starts += server.runs()
        until(lambda: server.runs() or not server.events.empty())
    assert starts == inside_reboots._MOST
    assert looped == [server.instance.uuid]
    assert server.state() == power_state.SHUTDOWN


def test_an_end_during_the_start(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine reports the second end before the first start has returned."""
    start_container = server.engine.start_container
    starts: list[str] = []

    def start(container: str) -> None:
        start_container(container)
        starts.append(container)
        if len(starts) == 1:
            server.reboot()

    monkeypatch.setattr(server.engine, "start_container", start)
    server.reboot()
    until(lambda: len(starts) == 2)
    server.settle()
    assert server.runs()


@pytest.mark.parametrize(("code", "starts"), [(129, True), (130, False), (0, False)])
def test_a_reboot_while_nova_compute_was_down(server: Server, code: int, starts: bool) -> None:
    server.end(code)
    server.driver._services.server_list.servers()
    server.driver.plug_vifs(server.instance, server.instance.get_network_info())
    server.settle()
    assert server.runs() is starts
    assert server.events.empty()


def test_the_ports_are_not_set_down_under_a_server_that_reboots(
    server: Server, network: FakeNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nova-compute plugs the VIFs at its start, and sets those of stopped servers down."""
    reached, go_on = held_starts(server, monkeypatch)
    server.reboot()
    server.driver._services.server_list.servers()
    assert reached.wait(60)
    ports = server.instance.get_network_info()
    plugging = threading.Thread(target=server.driver.plug_vifs, args=(server.instance, ports))
    plugging.start()
    plugging.join(0.2)
    go_on.set()
    plugging.join(60)
    server.settle()
    assert server.runs()
    assert network.silent == set()


def _move(server: Server, _image_meta: Any) -> None:
    server.driver.migrate_disk_and_power_off(
        *(None, server.instance, "192.0.2.9", server.instance.flavor),
        *(server.instance.get_network_info(), None, 60, 1),
    )


def _rescue(server: Server, image_meta: Any) -> None:
    ports = server.instance.get_network_info()
    server.driver.rescue(None, server.instance, ports, image_meta, "secret", None, None)


def _unrescue(server: Server, _image_meta: Any) -> None:
    server.driver.unrescue(None, server.instance)


def _rebuild(server: Server, _image_meta: Any) -> None:
    with contextlib.suppress(NotImplementedError):
        server.driver.rebuild(None, server.instance, None, [], None, {}, [], None, None)


def _pause(server: Server, _image_meta: Any) -> None:
    server.driver.pause(server.instance)


def _suspend(server: Server, _image_meta: Any) -> None:
    server.driver.suspend(None, server.instance)


def _revert(server: Server, _image_meta: Any) -> None:
    server.driver.destroy(None, server.instance, server.instance.get_network_info())


@pytest.mark.parametrize(
    ("operation", "task"),
    [
        (_move, task_states.RESIZE_MIGRATING),
        (_rescue, task_states.RESCUING),
        (_unrescue, task_states.UNRESCUING),
        (_rebuild, task_states.REBUILDING),
        (_pause, task_states.PAUSING),
        (_suspend, task_states.SUSPENDING),
        (_revert, task_states.RESIZE_REVERTING),
    ],
)
def test_operations_that_nova_does_not_lock_wait_for_the_start(
    server: Server,
    image_meta: Any,
    monkeypatch: pytest.MonkeyPatch,
    operation: Callable[[Server, Any], None],
    task: str,
) -> None:
    monkeypatch.setattr(server.host.nova_records, "is_reverted_here", lambda _instance: False)
    reached, go_on = threading.Event(), threading.Event()
    starts: list[str] = []
    start_container = server.engine.start_container

    def start(container: str) -> None:
        starts.append(container)
        reached.set()
        assert go_on.wait(60)
        start_container(container)

    monkeypatch.setattr(server.engine, "start_container", start)
    server.reboot()
    assert reached.wait(60)
    server.instance.task_state = task
    server.engine.calls.clear()
    working = threading.Thread(target=operation, args=(server, image_meta))
    working.start()
    working.join(0.2)
    assert working.is_alive()
    assert server.engine.calls == []
    assert len(starts) == 1
    assert server.host.transfer.steps == []
    go_on.set()
    working.join(60)
    server.settle()
    if operation is _move:
        assert server.host.transfer.steps[1:] == ["send ahead", "send", "commit"]
        assert not server.runs()
    if operation in (_pause, _suspend):
        assert [found.status for found in server.engine.containers.values()] == ["paused"]
    if operation is _revert:
        assert server.engine.containers == {}


def test_the_state_is_read_after_the_starts_of_other_servers(server: Server) -> None:
    starts = server.driver._inside_reboots._starts
    for _ in range(inside_reboots._AT_ONCE):
        starts.acquire()
    server.reboot()
    time.sleep(0.2)
    server.instance.task_state = task_states.RESIZE_MIGRATING
    starts.release(inside_reboots._AT_ONCE)
    server.settle()
    assert not server.runs()


def test_a_reboot_before_the_host_s_is_left_to_nova_s_option(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """busybox init reboots at SIGTERM, with which the engine stops it when the host goes down."""
    go_on = threading.Event()

    def read(_context: object, _uuid: str) -> Any:
        assert go_on.wait(60)
        return server.instance

    monkeypatch.setattr(server.driver._services, "read_instance", read)
    server.end(ago=datetime.datetime.now().timestamp() - psutil.boot_time() + 60)
    server.driver._services.server_list.servers()
    server.driver.plug_vifs(server.instance, server.instance.get_network_info())
    # Nova resumes the server if it finds it down.
    state = server.state()
    go_on.set()
    server.settle()
    assert state == power_state.SHUTDOWN
    assert not server.runs()
    assert server.events.empty()


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the time between two attempts."""
    monkeypatch.setattr(inside_reboots, "_RETRY_SECONDS", 0.01)


TIMED_OUT = oslo_messaging.MessagingTimeout("no reply")
UNAVAILABLE = exception.EngineUnavailable(url="fake", reason="a time-out")


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("read_instance", TIMED_OUT),
        ("read_instance", UNAVAILABLE),
        ("start_container", UNAVAILABLE),
    ],
)
def test_it_starts_after_an_outage(
    server: Server, monkeypatch: pytest.MonkeyPatch, name: str, fault: Exception
) -> None:
    target = server.driver._services if name == "read_instance" else server.engine
    states: list[int] = []
    function = getattr(target, name)

    def fail(*arguments: Any) -> Any:
        if len(states) <= inside_reboots._MOST:
            states.append(server.state())
            raise fault
        return function(*arguments)

    monkeypatch.setattr(target, name, fail)
    server.reboot()
    server.settle()
    assert server.runs()
    assert set(states) == {power_state.RUNNING}
    assert server.events.empty()


@pytest.mark.usefixtures("brief")
@pytest.mark.parametrize(("fault", "reported"), [(TIMED_OUT, True), (UNAVAILABLE, False)])
def test_a_long_outage(
    server: Server, monkeypatch: pytest.MonkeyPatch, fault: Exception, reported: bool
) -> None:
    monkeypatch.setattr(inside_reboots, "_OUTAGE_SECONDS", 0.1)
    monkeypatch.setattr(server.driver._services, "read_instance", Mock(side_effect=fault))
    server.reboot()
    server.settle()
    assert not server.runs()
    if reported:
        event = server.events.get(timeout=60)
        assert event.get_transition() == virtevent.EVENT_LIFECYCLE_STOPPED
    assert server.events.empty()


def test_it_starts_when_the_engine_reports_it_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = threading.Event()
    read_instance = server.driver._services.read_instance

    def fail(*_: object) -> None:
        reached.set()
        raise UNAVAILABLE

    monkeypatch.setattr(inside_reboots, "_RETRY_SECONDS", 3600.0)
    monkeypatch.setattr(server.driver._services, "read_instance", fail)
    server.reboot()
    assert reached.wait(60)
    monkeypatch.setattr(server.driver._services, "read_instance", read_instance)
    server.driver._inside_reboots.add(server.instance.uuid)
    server.settle()
    assert server.runs()


def test_the_bound_is_for_a_period_and_for_each_server() -> None:
    start = datetime.datetime.now(datetime.UTC)

    def count(bound: Bound, uuid: str, now: float) -> bool:
        return bound.count(uuid, start + datetime.timedelta(seconds=now), now)

    bound = Bound(2, 10.0)
    assert [count(bound, "a", now) for now in (0.0, 1.0, 2.0, 10.0)] == [True, True, False, True]
    assert count(bound, "b", 10.0)
    assert not count(bound, "a", 10.5)
    assert count(bound, "a", 10.0)
    assert count(bound, "b", 100.0)
    assert list(bound._times) == list(bound._ends) == ["b"]
