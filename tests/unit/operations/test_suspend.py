# SPDX-License-Identifier: Apache-2.0
"""Suspend and resume with the memory on the disk, on fakes."""

from dataclasses import replace
from typing import Any

import pytest
from nova import exception as nova_exception
from nova.compute import task_states, vm_states
from oslo_privsep import comm

from novadocker import exception
from tests.unit.fakes import FakeHost


class Server:
    """A running server whose memory goes to the disk."""

    def __init__(self, driver: Any, instance: Any, network_info: Any, host: FakeHost) -> None:
        self.driver, self.instance, self.network_info = driver, instance, network_info
        self.host = host
        self.engine = host.engine
        self.saved = host.checkpoints
        (self.id,) = self.engine.containers

    def set(self, **changes: Any) -> None:
        self.engine.containers[self.id] = replace(self.engine.containers[self.id], **changes)

    @property
    def status(self) -> str:
        return self.engine.containers[self.id].status

    def suspend(self) -> None:
        self.driver.suspend(None, self.instance)

    def resume(self) -> None:
        self.driver.resume(None, self.instance, self.network_info)

    def suspended(self) -> None:
        """Be suspended to the disk."""
        self.set(status="exited", pid=0, exit_code=137, last_start="first")
        self.saved.saved[self.instance.uuid] = "first"
        self.host.network.silent.add(self.instance.uuid)

    @property
    def notes(self) -> list[tuple[str, str]]:
        return self.host.nova_records.notes


@pytest.fixture
def server(
    driver: Any,
    instance: Any,
    image_meta: Any,
    network_info: Any,
    fake_host: FakeHost,
    monkeypatch: pytest.MonkeyPatch,
) -> Server:
    instance.flavor.extra_specs = {"docker:suspend": "disk"}
    driver.spawn(None, instance, image_meta, [], None, {}, network_info=network_info)
    found = Server(driver, instance, network_info, fake_host)
    found.set(last_start="first")

    def thaw(container: str) -> None:
        # Killed processes end when they are thawed.
        killed = instance.uuid in found.saved.saved
        found.engine.calls.append(("unpause", container))
        found.set(status="exited", pid=0) if killed else found.set(status="running")

    monkeypatch.setattr(found.engine, "unpause_container", thaw)
    found.engine.calls.clear()
    return found


def test_the_memory_is_written_before_the_processes_end(server: Server) -> None:
    calls = server.engine.calls
    dump = server.saved.dump

    def dumped(*arguments: Any) -> None:
        assert server.status == "paused"
        assert server.host.network.silent == {server.instance.uuid}
        calls.append(("dump",))
        dump(*arguments)

    server.saved.dump = dumped  # type: ignore[method-assign]
    server.suspend()
    assert [call[0] for call in calls] == ["pause", "dump", "unpause"]
    assert server.saved.calls == ["dump", "end"]
    assert server.status == "exited"
    assert server.notes == []

    server.resume()
    assert server.status == "running"
    assert server.saved.calls[2:] == ["restore", "discard"]
    assert server.host.network.silent == set()


@pytest.mark.parametrize("option", ["ram", "disk"])
def test_the_flavor_decides_before_the_host(server: Server, options: Any, option: str) -> None:
    options(group="docker", suspend=option)
    server.instance.flavor.extra_specs = {"docker:suspend": "ram"}
    server.suspend()
    assert (server.status, server.saved.calls, server.notes) == ("paused", [], [])
    server.instance.flavor.extra_specs = {}
    server.resume()
    server.suspend()
    assert bool(server.saved.calls) is (option == "disk")


@pytest.mark.parametrize(
    "failure",
    [OSError(5, "CRIU: it is hard"), comm.PrivsepTimeout("took too long")],
)
def test_a_dump_that_fails_leaves_the_frozen_server(server: Server, failure: Exception) -> None:
    server.saved.failure = failure
    server.suspend()
    assert server.status == "paused"
    assert server.host.network.silent == {server.instance.uuid}
    ((event, reason),) = server.notes
    assert event == "docker_suspend_to_disk"
    assert reason in str(failure)
    server.resume()
    assert server.status == "running"
    assert "restore" not in server.saved.calls


@pytest.mark.parametrize(
    ("status", "last_start", "answers"),
    [("running", "first", True), ("paused", "second", True), ("paused", "first", False)],
)
def test_processes_that_may_have_run_are_not_killed(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    status: str,
    last_start: str,
    answers: bool,
) -> None:
    dump = server.saved.dump
    error = exception.EngineUnavailable(url="engine", reason="it is down")

    def dumped(*arguments: Any) -> None:
        dump(*arguments)
        server.set(status=status, last_start=last_start)
        if not answers:
            monkeypatch.setattr(
                server.engine, "inspect_container", lambda _: (_ for _ in ()).throw(error)
            )

    server.saved.dump = dumped  # type: ignore[method-assign]
    server.suspend()
    assert server.saved.calls == ["dump"]
    assert server.status == status
    ((_, reason),) = server.notes
    assert ("ran again" if answers else "it is down") in reason


def test_what_is_refused_is_not_touched_by_criu(server: Server) -> None:
    server.saved.impossible = "there is no program criu on this host"
    server.suspend()
    server.resume()
    server.saved.impossible = ""
    server.host.block_devices = {"block_device_mapping": [{}]}
    server.suspend()
    assert server.saved.calls == []
    assert server.status == "paused"
    assert [reason for _, reason in server.notes] == [
        "there is no program criu on this host",
        "the server can't be written to the disk: it has volumes, whose devices may have other "
        "numbers later",
    ]


def test_rules_that_have_changed_do_not_fail_a_suspend(server: Server, options: Any) -> None:
    options(group="docker", suspend="disk")
    server.instance.flavor.extra_specs = {"docker:unknown": "1"}
    server.suspend()
    assert (server.status, server.saved.calls) == ("paused", [])
    assert "docker:unknown" in server.notes[0][1]


def test_an_engine_that_fails_at_the_end_loses_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = server.engine.wait_container
    monkeypatch.setattr(server.engine, "wait_container", lambda *_: None)
    monkeypatch.setattr(server.engine, "unpause_container", lambda *_: None)
    server.suspend()
    assert server.status == "paused"
    with pytest.raises(nova_exception.InstanceFaultRollback):
        server.resume()
    assert server.saved.saved == {server.instance.uuid: "first"}
    monkeypatch.setattr(server.engine, "wait_container", wait)
    monkeypatch.setattr(
        server.engine, "unpause_container", lambda _: server.set(status="exited", pid=0)
    )
    server.resume()
    assert server.status == "running"
    assert server.saved.calls[-2:] == ["restore", "discard"]


def test_processes_that_were_not_killed_yet_do_not_run_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The helper may die after it has renamed the images and before it kills the processes."""
    server.set(status="paused")
    server.saved.saved[server.instance.uuid] = "first"
    thaw = server.engine.unpause_container

    def thawed(container: str) -> None:
        assert server.saved.calls == ["end"]
        thaw(container)

    monkeypatch.setattr(server.engine, "unpause_container", thawed)
    server.resume()
    assert server.status == "running"
    assert server.saved.calls == ["end", "restore", "discard"]


def test_frozen_processes_of_a_later_run_are_thawed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.set(status="paused", last_start="second")
    server.saved.saved[server.instance.uuid] = "first"
    server.resume()
    assert server.status == "running"
    assert server.saved.calls == ["discard"]


def test_a_restore_that_fails_keeps_the_memory(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.suspended()
    fault = exception.EngineError(operation="a start", reason="CRIU: it is hard")
    with monkeypatch.context() as patch:
        patch.setattr(server.engine, "start_container", lambda _: (_ for _ in ()).throw(fault))
        with pytest.raises(nova_exception.InstanceFaultRollback, match="it is hard"):
            server.resume()
    assert server.saved.saved == {server.instance.uuid: "first"}
    assert server.host.network.silent == {server.instance.uuid}
    server.resume()
    assert server.status == "running"


def test_a_restored_server_without_ports_is_frozen(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not run while Nova has it as suspended."""
    server.suspended()
    (port,) = server.network_info
    with monkeypatch.context() as patch:
        fault = exception.PlugFailed(port_id=port["id"], reason="the switch is down")
        patch.setattr(server.driver._ports, "apply", lambda *_: (_ for _ in ()).throw(fault))
        with pytest.raises(nova_exception.InstanceFaultRollback, match="the switch is down"):
            server.resume()
    assert server.status == "paused"
    assert server.host.network.silent == {server.instance.uuid}
    # The shim has used the images.
    del server.saved.saved[server.instance.uuid]
    server.saved.used.add(server.instance.uuid)
    server.resume()
    assert server.status == "running"
    assert server.saved.used == set()


def test_a_server_is_resumed_even_if_its_images_stay(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.suspended()

    def fail(host: str, instance_uuid: str) -> None:
        raise comm.PrivsepTimeout("took too long")

    monkeypatch.setattr(server.saved, "discard", fail)
    server.resume()
    assert server.status == "running"


def test_a_restore_that_was_interrupted_is_not_repeated(server: Server) -> None:
    server.set(status="exited", pid=0)
    server.saved.used.add(server.instance.uuid)
    with pytest.raises(nova_exception.InstanceFaultRollback, match="interrupted"):
        server.resume()
    assert server.status == "exited"
    server.driver.reboot(None, server.instance, server.network_info, "HARD")
    assert server.status == "running"
    assert server.saved.used == set()


def test_a_server_that_ran_meanwhile_starts_anew(server: Server) -> None:
    server.suspended()
    server.set(last_start="second")
    server.resume()
    assert server.status == "running"
    assert server.saved.saved == {}


def test_processes_that_live_have_no_memory_on_the_disk(server: Server) -> None:
    server.set(status="paused")
    server.saved.frozen[server.instance.uuid] = "first"
    server.resume()
    assert server.status == "running"
    assert server.saved.frozen == {}
    assert "restore" not in server.saved.calls


def test_ports_are_down_until_the_server_is_restored(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.suspended()
    # The host has restarted.
    server.host.network.wired.clear()
    server.host.network.silent.clear()
    start = server.engine.start_container
    seen = []

    def started(container: str) -> None:
        seen.append(set(server.host.network.silent))
        start(container)

    monkeypatch.setattr(server.engine, "start_container", started)
    server.resume()
    assert seen == [{server.instance.uuid}]
    assert server.host.network.silent == set()


@pytest.mark.parametrize("operation", ["destroy", "power_off", "power_on", "reboot"])
def test_other_operations_delete_the_memory(server: Server, operation: str) -> None:
    server.suspended()
    if operation == "destroy":
        server.driver.destroy(None, server.instance, server.network_info)
    elif operation == "power_off":
        server.driver.power_off(server.instance)
    elif operation == "power_on":
        server.driver.power_on(None, server.instance, server.network_info)
    else:
        server.driver.reboot(None, server.instance, server.network_info, "HARD")
    assert server.saved.saved == {}
    assert "restore" not in server.saved.calls


@pytest.mark.parametrize(
    ("left", "after"),
    [
        ("saved", vm_states.SUSPENDED),
        # The host went down before the memory was whole, or before the processes were killed.
        ("frozen", vm_states.ACTIVE),
        ("used", vm_states.ACTIVE),
    ],
)
def test_only_a_server_with_its_whole_memory_is_suspended_after_a_crash(
    server: Server, monkeypatch: pytest.MonkeyPatch, left: str, after: str
) -> None:
    server.suspended()
    del server.saved.saved[server.instance.uuid]
    if left == "used":
        server.saved.used.add(server.instance.uuid)
    else:
        getattr(server.saved, left)[server.instance.uuid] = "first"
    server.instance.vm_state = vm_states.ACTIVE
    server.instance.task_state = task_states.SUSPENDING
    records = server.host.nova_records
    monkeypatch.setattr(records, "cut_off", lambda *_: [server.instance])
    monkeypatch.setattr(records, "save", lambda *_: True)
    server.driver.init_host("host1")
    assert (server.instance.vm_state, server.instance.task_state) == (after, None)


@pytest.mark.parametrize("status", ["exited", "paused"])
def test_a_resume_without_an_engine_leaves_the_server_suspended(
    server: Server, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    """Nova resumes no server in ERROR."""
    server.suspended()
    server.set(status=status)
    error = exception.EngineUnavailable(url="engine", reason="it is down")
    with monkeypatch.context() as patch:
        patch.setattr(server.engine, "inspect_container", lambda _: (_ for _ in ()).throw(error))
        with pytest.raises(nova_exception.InstanceFaultRollback, match="it is down"):
            server.resume()
    server.resume()
    assert server.status == "running"
