# SPDX-License-Identifier: Apache-2.0
"""Operations during which nova-compute died: complete or taken back, by the container's state."""

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from nova import exception as nova_exception
from nova import objects
from nova.compute import instance_actions, power_state, task_states, vm_states
from nova.objects import instance_action
from oslo_utils import timeutils

from novadocker import naming
from novadocker.virt.docker.migration import nova_records
from novadocker.virt.docker.model import Container
from novadocker.virt.docker.operations import interrupted

RUNNING, PAUSED, SHUTDOWN = power_state.RUNNING, power_state.PAUSED, power_state.SHUTDOWN
ACTIVE, RESCUED, SUSPENDED = vm_states.ACTIVE, vm_states.RESCUED, vm_states.SUSPENDED


class Records:
    """Nova's records of one instance, whose operation was cut off."""

    def __init__(self, instance: Any, saves: bool = True) -> None:
        self.instance = instance
        self.saves = saves
        self.expected: list[str] = []
        self.events: Any = None
        self.ended: list[tuple[str, str | None]] = []

    def cut_off(self, host: str, events: Any) -> list[Any]:
        assert host == "host1"
        self.events = events
        return [self.instance]

    def cut_off_events(self, instance_uuid: str, host: str) -> list[str]:
        assert (instance_uuid, host) == (self.instance.uuid, "host1")
        return ["event"]

    def end_event(self, event: str, failure: str | None) -> None:
        self.ended.append((event, failure))

    def save(self, instance: Any, task: str) -> bool:
        assert instance.task_state is None
        self.expected.append(task)
        return self.saves


def no_image(instance: Any) -> None:
    """Do nothing with an instance for which nova-api created an image."""


def no_memory(_instance_uuid: str, _container_id: str) -> bool:
    """Find no memory of an instance on the disk."""
    return False


def container(instance: Any, status: str, stand_in: bool = False) -> Container:
    labels = {naming.LABEL_UUID: instance.uuid, naming.LABEL_RESCUE: "1" if stand_in else ""}
    return Container("id", f"nova-{instance.uuid}", status, labels)


@pytest.mark.parametrize(
    ("task", "before", "status", "stand_in", "after", "power"),
    [
        (task_states.PAUSING, ACTIVE, "paused", False, vm_states.PAUSED, PAUSED),
        (task_states.PAUSING, ACTIVE, "running", False, ACTIVE, RUNNING),
        (task_states.SUSPENDING, ACTIVE, "paused", False, SUSPENDED, PAUSED),
        (task_states.SUSPENDING, ACTIVE, "running", False, ACTIVE, RUNNING),
        (task_states.RESUMING, SUSPENDED, "running", False, ACTIVE, RUNNING),
        (task_states.RESUMING, SUSPENDED, "paused", False, SUSPENDED, RUNNING),
        (task_states.RESCUING, ACTIVE, "running", True, RESCUED, RUNNING),
        (task_states.RESCUING, ACTIVE, "created", True, ACTIVE, RUNNING),
        (task_states.RESCUING, ACTIVE, "exited", False, ACTIVE, RUNNING),
        (task_states.UNRESCUING, RESCUED, "running", True, RESCUED, RUNNING),
        (task_states.UNRESCUING, RESCUED, "exited", False, ACTIVE, SHUTDOWN),
        (task_states.UPDATING_PASSWORD, ACTIVE, "running", False, ACTIVE, RUNNING),
        (task_states.SHELVING_IMAGE_UPLOADING, ACTIVE, "exited", False, ACTIVE, RUNNING),
    ],
)
def test_state_after_the_start(
    instance: Any, task: str, before: str, status: str, stand_in: bool, after: str, power: int
) -> None:
    instance.task_state, instance.vm_state, instance.power_state = task, before, RUNNING
    records = Records(instance)
    servers = {instance.uuid: container(instance, status, stand_in)}
    interrupted.end(records, "host1", lambda: servers, no_image, no_memory)
    assert (instance.vm_state, instance.power_state) == (after, power)
    assert records.expected == [task]
    # A tenant reads in the instance action whether the operation was done or taken back.
    done = (after, power) != (before, RUNNING)
    assert records.ended == [("event", None if done else interrupted.DIED)]


@pytest.mark.parametrize(
    ("task", "status", "after"),
    [
        (task_states.SUSPENDING, "exited", SUSPENDED),
        (task_states.SUSPENDING, "running", ACTIVE),
        (task_states.PAUSING, "exited", ACTIVE),
    ],
)
def test_memory_on_the_disk(instance: Any, task: str, status: str, after: str) -> None:
    instance.task_state, instance.vm_state = task, ACTIVE
    servers = {instance.uuid: container(instance, status)}
    interrupted.end(Records(instance), "host1", lambda: servers, no_image, lambda *_: True)
    assert instance.vm_state == after


def test_an_operation_whose_task_has_changed_gets_no_result(instance: Any) -> None:
    """Its state may not be the one that the result would tell."""
    instance.task_state, instance.vm_state = task_states.PAUSING, ACTIVE
    records = Records(instance, saves=False)
    interrupted.end(records, "host1", dict, no_image, no_memory)
    assert records.expected == [task_states.PAUSING]
    assert records.ended == []


def test_instance_without_a_container_keeps_its_state(instance: Any) -> None:
    instance.task_state, instance.vm_state = task_states.UNRESCUING, RESCUED
    interrupted.end(Records(instance), "host1", dict, no_image, no_memory)
    assert (instance.vm_state, instance.task_state) == (RESCUED, None)


@pytest.mark.parametrize("task", interrupted.OPERATIONS)
def test_instances_with_an_image(instance: Any, task: str) -> None:
    """nova-compute may die again, so the image is noted before Nova forgets the task."""
    instance.task_state = task
    found: list[tuple[str, Any]] = []
    interrupted.end(
        Records(instance),
        "host1",
        dict,
        lambda each: found.append((each.uuid, each.task_state)),
        no_memory,
    )
    assert found == ([(instance.uuid, task)] if "image" in task or "shelving" in task else [])


@pytest.mark.parametrize(
    ("task", "action", "event", "host", "end", "cut_off"),
    [
        (task_states.PAUSING, "pause", "compute_pause_instance", "host1", None, True),
        # The request is still in the queue.
        (task_states.PAUSING, "pause", "other", "host1", None, False),
        (task_states.PAUSING, "pause", "compute_pause_instance", "host2", None, False),
        (task_states.PAUSING, "pause", "compute_pause_instance", "host1", 1, False),
        (task_states.PAUSING, "suspend", "compute_pause_instance", "host1", None, False),
        # nova-compute sets this task.
        (task_states.IMAGE_UPLOADING, "createImage", "other", "host1", 1, True),
    ],
)
def test_only_operations_that_had_begun_are_ended(
    instance: Any,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    action: str,
    event: str,
    host: str,
    end: int | None,
    cut_off: bool,
) -> None:
    instance.task_state = task
    events = {task: (o.action, o.event) for task, o in interrupted.OPERATIONS.items()}
    asked = []

    def get(_context: object, filters: Any) -> list[Any]:
        asked.append(filters)
        return [instance]

    monkeypatch.setattr(objects.InstanceList, "get_by_filters", get)
    monkeypatch.setattr(
        objects.InstanceActionList,
        "get_by_instance_uuid",
        lambda *_, **__: [SimpleNamespace(id=5, action=action, request_id="req-1")],
    )
    monkeypatch.setattr(
        objects.InstanceActionEventList,
        "get_by_action",
        lambda *_: [SimpleNamespace(event=event, host=host, start_time=0, finish_time=end)],
    )
    assert list(nova_records.cut_off("host1", events)) == ([instance] if cut_off else [])
    assert asked == [{"host": "host1", "task_state": list(events)}]


@pytest.mark.parametrize(("failure", "result"), [(None, "Success"), (interrupted.DIED, "Error")])
def test_result_of_an_action(
    instance: Any, monkeypatch: pytest.MonkeyPatch, failure: str | None, result: str
) -> None:
    """Nova finds the action by the request that nova-compute was killed in."""
    written: list[Any] = []

    def finish(_context: object, values: Any) -> None:
        written.append(values)

    monkeypatch.setattr(instance_action.db, "action_event_finish", finish)
    event = nova_records.CutOffEvent(
        instance_uuid=instance.uuid,
        request_id="req-1",
        action="attach_interface",
        event="compute_attach_interface",
        start_time=timeutils.utcnow(),
    )
    nova_records.end_event(event, failure)
    (values,) = written
    assert values["request_id"] == "req-1"
    assert values["instance_uuid"] == instance.uuid
    assert values["event"] == "compute_attach_interface"
    assert values["result"] == result
    assert values.get("details") == failure

    def fail(_context: object, _values: Any) -> None:
        raise nova_exception.InstanceActionNotFound(request_id="req-1", instance_uuid="server")

    monkeypatch.setattr(instance_action.db, "action_event_finish", fail)
    nova_records.end_event(event, failure)


def test_ports_that_nova_has_begun_to_allocate(
    instance: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = timeutils.utcnow(with_timezone=True)
    made = [
        SimpleNamespace(uuid="before", created_at=begun - timedelta(seconds=1)),
        SimpleNamespace(uuid="since", created_at=begun + timedelta(seconds=1)),
    ]
    monkeypatch.setattr(
        objects.VirtualInterfaceList, "get_by_instance_uuid", lambda _context, _uuid: made
    )
    assert nova_records.ports_since(instance.uuid, begun) == {"since"}


def test_names_are_novas() -> None:
    actions = {value for name, value in vars(instance_actions).items() if name.isupper()}
    used = {found.action for found in interrupted.OPERATIONS.values()} - {""}
    assert used <= actions


@pytest.mark.parametrize(
    "failure",
    [
        nova_exception.InstanceNotFound(instance_id="server"),
        nova_exception.UnexpectedDeletingTaskStateError(
            instance_uuid="server", expected={}, actual={}
        ),
    ],
)
def test_instance_that_is_deleted_meanwhile(
    instance: Any, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: object, expected_task_state: str) -> None:
        raise failure

    monkeypatch.setattr(objects.Instance, "save", fail)
    assert not nova_records.save(instance, task_states.PAUSING)


@pytest.mark.parametrize(
    ("host", "vm_state", "task_state", "expected"),
    [
        ("host1", ACTIVE, None, False),
        ("host2", ACTIVE, None, True),
        # A move to the other host may be reverted.
        ("host2", vm_states.RESIZED, None, False),
        ("host2", ACTIVE, task_states.RESIZE_MIGRATED, False),
    ],
)
def test_instances_that_are_gone_from_a_host(
    instance: Any,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    vm_state: str,
    task_state: str | None,
    expected: bool,
) -> None:
    instance.host, instance.vm_state, instance.task_state = host, vm_state, task_state
    uuids = {instance.uuid, "deleted", "unknown"}

    def get(_context: object, filters: Any) -> list[Any]:
        assert set(filters["uuid"]) == uuids
        return [SimpleNamespace(uuid="deleted")] if filters["deleted"] else [instance]

    monkeypatch.setattr(objects.InstanceList, "get_by_filters", get)
    found = nova_records.gone(uuids, "host1")
    assert found == {"deleted"} | ({instance.uuid} if expected else set())
    assert nova_records.gone((), "host1") == set()
