# SPDX-License-Identifier: Apache-2.0
import queue
from typing import Any

import oslo_messaging
import pytest
from nova import objects

from novadocker.virt.docker import incidents
from novadocker.virt.docker.incidents import IncidentActions

UUID = "5f9f2a0e-1a1d-4f0c-8a58-2f6f1f9b7c11"
OTHER = "6a0f2a0e-1a1d-4f0c-8a58-2f6f1f9b7c12"


class FakeActions:
    """A fake of Nova's actions; the first ``broken`` calls fail."""

    def __init__(self) -> None:
        self.calls: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self.broken = 0

    def action_start(self, context: Any, *words: Any, want_result: bool) -> None:
        assert context.is_admin
        assert not want_result
        if self.broken:
            self.broken -= 1
            raise oslo_messaging.MessagingTimeout
        self.calls.put(("start", context.request_id, *words))

    def action_finish(self, context: Any, *words: Any, want_result: bool) -> None:
        assert not want_result
        self.calls.put(("finish", context.request_id, *words))


@pytest.fixture
def actions(monkeypatch: pytest.MonkeyPatch) -> FakeActions:
    found = FakeActions()
    monkeypatch.setattr(objects, "InstanceAction", found)
    return found


def test_a_kill_is_an_action_that_is_over(actions: FakeActions) -> None:
    incidents.record("oom_kill", UUID)
    start, finish = actions.calls.get(timeout=1), actions.calls.get(timeout=1)
    assert (start[0], start[2:]) == ("start", (UUID, "oom_kill"))
    assert (finish[0], finish[2:]) == ("finish", (UUID,))
    assert start[1] == finish[1]


def test_a_server_has_one_of_a_kind_in_ten_minutes_and_hinders_no_other(
    actions: FakeActions,
) -> None:
    now = [0.0]
    found = IncidentActions(clock=lambda: now[0])
    found.start()
    for uuid in (UUID, UUID, OTHER, UUID):
        found.add("oom_kill", uuid)
    found.add("pids_limit", UUID)
    now[0] = 601
    found.add("oom_kill", UUID)
    found.stop()
    told = [actions.calls.get(timeout=10) for _ in range(8)]
    assert [call[2:] for call in told if call[0] == "start"] == [
        (UUID, "oom_kill"),
        (OTHER, "oom_kill"),
        (UUID, "pids_limit"),
        (UUID, "oom_kill"),
    ]
    assert actions.calls.empty()


def test_a_conductor_that_is_away_costs_that_action_alone(actions: FakeActions) -> None:
    actions.broken = 1
    found = IncidentActions()
    found.start()
    found.add("oom_kill", UUID)
    found.add("oom_kill", OTHER)
    assert actions.calls.get(timeout=10)[2] == OTHER
    found.stop()
