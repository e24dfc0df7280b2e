# SPDX-License-Identifier: Apache-2.0
"""The thread that creates backups."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from oslo_privsep import comm, daemon

from novadocker import exception
from novadocker.virt.docker.migration import backup
from novadocker.virt.docker.migration.backup import Backups
from tests import waiting

UUIDS = ["01234567-89ab-cdef-0123-456789abcdef", "11234567-89ab-cdef-0123-456789abcdef"]


@pytest.mark.parametrize(
    "failure",
    [
        exception.RegistryFailed(registry="registry.example.com", reason="it is full"),
        OSError(5, "Input/output error"),
        comm.PrivsepTimeout("3600 s"),
        daemon.FailedToDropPrivileges("sudo refuses"),
        ValueError("no number"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_backup_that_fails_does_not_end_the_thread(
    options: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    failure: Exception,
) -> None:
    options("docker", transfer_registry="registry.example.com/moves", copy_interval=60)
    monkeypatch.setattr(backup, "_LOOK_SECONDS", 0.01)
    engine: Any = SimpleNamespace(list_images=lambda _pattern: {})
    listing: Any = SimpleNamespace(
        servers=lambda: {uuid: SimpleNamespace(status="running") for uuid in UUIDS}
    )
    tried: list[str] = []

    def create(_backups: Backups, instance_uuid: str) -> None:
        tried.append(instance_uuid)
        raise failure

    monkeypatch.setattr(Backups, "create", create)
    monkeypatch.setattr(Backups, "_is_due", lambda *_: True)
    backups = Backups(engine, listing, tmp_path / "marks")
    backups.start()
    waiting.until(lambda: len(tried) >= 2 * len(UUIDS), interval=0.01)
    backups.stop()
    assert tried[: 2 * len(UUIDS)] == UUIDS * 2
    assert caplog.messages == [f"Failed to copy server {uuid}: {failure}" for uuid in UUIDS]


def test_a_mark_that_can_not_be_written_does_not_end_the_thread(
    options: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options("docker", transfer_registry="registry.example.com/moves", copy_interval=60)
    monkeypatch.setattr(backup, "_LOOK_SECONDS", 0.01)
    marks = tmp_path / "marks"
    asked: list[None] = []

    def servers() -> dict[str, Any]:
        # The directory is away when the thread looks first.
        if asked:
            marks.mkdir(exist_ok=True)
        else:
            marks.rmdir()
        asked.append(None)
        return {UUIDS[1]: SimpleNamespace(status="running")}

    tried: list[str] = []
    monkeypatch.setattr(Backups, "create", lambda _backups, uuid: tried.append(uuid))
    engine: Any = SimpleNamespace(list_images=lambda _pattern: {})
    backups = Backups(engine, SimpleNamespace(servers=servers), marks)  # type: ignore[arg-type]
    backups.start()
    waiting.until(lambda: bool(tried), interval=0.01)
    backups.stop()
