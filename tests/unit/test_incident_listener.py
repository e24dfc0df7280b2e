# SPDX-License-Identifier: Apache-2.0
"""Only novadocker-exporter's reports reach nova-compute."""

import queue
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from novadocker.state_files import incident_socket
from novadocker.virt.docker.incidents import IncidentListener

FILE = "novadocker-incidents"
UUID = "5f9f2a0e-1a1d-4f0c-8a58-2f6f1f9b7c11"

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
