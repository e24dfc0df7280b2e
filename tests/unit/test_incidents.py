# SPDX-License-Identifier: Apache-2.0
import queue
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import oslo_messaging
import pytest
from nova import objects

from novadocker.state_files import incident_socket
from novadocker.virt.docker import incidents
from novadocker.virt.docker.incidents import IncidentActions, IncidentListener

FILE = "novadocker-incidents"
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


def test_a_conductor_that_is_away_costs_that_action_alone(
    actions: FakeActions, caplog: pytest.LogCaptureFixture
) -> None:
    actions.broken = 1
    found = IncidentActions()
    found.start()
    found.add("oom_kill", UUID)
    found.add("oom_kill", OTHER)
    assert actions.calls.get(timeout=10)[2] == OTHER
    found.stop()
    (record,) = caplog.records
    assert record.getMessage().startswith("Failed to record action oom_kill: ")
    assert vars(record)["instance_uuid"] == UUID


# -- the listener: only novadocker-exporter's reports reach nova-compute -------------------------

Told = queue.SimpleQueue[tuple[str, str]]


@pytest.fixture
def state_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory whose path is short enough for a socket."""
    return tmp_path_factory.mktemp("s")


@pytest.fixture
def told(state_path: Path) -> Iterator[Told]:
    """Yield the reports that a listener received."""
    found: Told = queue.SimpleQueue()
    listener = IncidentListener(state_path, lambda *words: found.put(words))
    listener.start()
    yield found
    listener.stop()


def test_an_incident_arrives(state_path: Path, told: Told) -> None:
    for kind in incident_socket.TOLD:
        incident_socket.tell(state_path, kind, UUID)
        assert told.get(timeout=10) == (kind, UUID)


def test_what_is_no_incident_is_nothing(state_path: Path, told: Told) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(state_path / FILE))
        for words in (
            b"",
            b"\xff",
            f"oom_kill {UUID}".encode(),
            b"pids_limit ../../etc",
            f"pids_limit {UUID}\n".encode(),
            f"pids_limit {UUID} {'x' * 1000}".encode(),
        ):
            sender.send(words)
    incident_socket.tell(state_path, "pids_limit", UUID)
    assert told.get(timeout=10) == ("pids_limit", UUID)
    assert told.empty()


def test_the_socket_is_closed_to_others_and_made_anew(state_path: Path, told: Told) -> None:
    assert stat.S_IMODE((state_path / FILE).stat().st_mode) == 0o600
    again: Told = queue.SimpleQueue()
    later = IncidentListener(state_path, lambda *words: again.put(words))
    later.start()
    incident_socket.tell(state_path, "pids_limit", UUID)
    assert again.get(timeout=10) == ("pids_limit", UUID)
    assert told.empty()
    later.stop()


def test_nobody_listens_after_the_end(state_path: Path) -> None:
    listener = IncidentListener(state_path, lambda *_: None)
    listener.start()
    listener.stop()
    with pytest.raises(ConnectionError):
        incident_socket.tell(state_path, "pids_limit", UUID)


def test_a_folder_that_takes_no_socket_costs_that_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listener = IncidentListener(tmp_path / "absent", lambda *_: None)
    listener.start()
    assert "novadocker-exporter" in caplog.text
    listener.stop()
