# SPDX-License-Identifier: Apache-2.0
"""What a host may send to this one: Nova's records, whatever the other host says."""

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import oslo_messaging
import pytest
from nova import conf, objects
from nova import exception as nova_exception
from nova.compute import task_states

from novadocker.virt.docker.migration import expected

UUID = "01234567-89ab-cdef-0123-456789abcdef"


class Records:
    """Nova's records of an instance that moves to this host."""

    def __init__(self) -> None:
        self.instance = SimpleNamespace(
            task_state=task_states.RESIZE_MIGRATING,
            migration_context=SimpleNamespace(migration_id=7),
            flavor=SimpleNamespace(root_gb=1),
            new_flavor=SimpleNamespace(root_gb=3),
        )
        self.migration = SimpleNamespace(dest_compute="here")
        self.failure: Exception | None = None

    def get_by_uuid(self, _context: Any, uuid: str, expected_attrs: list[str]) -> Any:
        assert uuid == UUID
        # The flavors and the context of the move are not loaded otherwise.
        assert set(expected_attrs) == {"flavor", "migration_context"}
        if self.failure:
            raise self.failure
        return self.instance

    def get_by_id_and_instance(self, _context: Any, number: int, uuid: str) -> Any:
        assert (number, uuid) == (7, UUID)
        return self.migration


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Iterator[Records]:
    found = Records()
    monkeypatch.setattr(objects.Instance, "get_by_uuid", found.get_by_uuid)
    monkeypatch.setattr(objects.Migration, "get_by_id_and_instance", found.get_by_id_and_instance)
    conf.CONF.set_override("host", "here")
    yield found
    conf.CONF.clear_override("host")


def test_the_bound_is_the_root_disk_of_the_new_flavor(records: Records) -> None:
    assert expected.most_bytes(UUID) == 3 << 30
    records.instance.new_flavor.root_gb = 0
    assert expected.most_bytes(UUID) == 0


@pytest.mark.parametrize("state", [None, task_states.RESIZE_MIGRATED, task_states.REBUILDING])
def test_an_instance_that_does_not_move(records: Records, state: str | None) -> None:
    records.instance.task_state = state
    with pytest.raises(ValueError, match="does not move the server"):
        expected.most_bytes(UUID)


def test_an_instance_without_a_move(records: Records) -> None:
    records.instance.migration_context = None
    with pytest.raises(ValueError, match="does not move the server"):
        expected.most_bytes(UUID)


def test_an_instance_that_moves_to_another_host(records: Records) -> None:
    records.migration.dest_compute = "there"
    with pytest.raises(ValueError, match="to another host"):
        expected.most_bytes(UUID)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nova_exception.InstanceNotFound(instance_id=UUID),
        lambda: oslo_messaging.MessagingTimeout("timed out"),
        lambda: oslo_messaging.RemoteError("KeyError", "x", []),
    ],
)
def test_a_nova_that_does_not_tell(records: Records, make: Callable[[], Exception]) -> None:
    records.failure = make()
    with pytest.raises(ValueError, match="does not tell about the server"):
        expected.most_bytes(UUID)


def test_a_broker_that_is_away(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    back = threading.Event()
    monkeypatch.setattr(expected, "_SECONDS", 0.05)
    monkeypatch.setattr(expected, "read_most_bytes", lambda *_: back.wait(30))
    try:
        with pytest.raises(ValueError, match="does not answer"):
            expected.most_bytes(UUID)
    finally:
        back.set()
