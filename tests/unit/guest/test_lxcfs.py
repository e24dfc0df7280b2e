# SPDX-License-Identifier: Apache-2.0
"""The replacement of the mounts of lxcfs in many containers, on fakes."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from oslo_privsep import comm, daemon

from novadocker import exception
from novadocker.virt.docker.containers.pending import HUNG_SECONDS
from novadocker.virt.docker.guest import lxcfs
from novadocker.virt.docker.guest.lxcfs import Lxcfs


@pytest.mark.parametrize(
    "failure",
    [
        OSError("the container has just ended"),
        comm.PrivsepTimeout("60 s"),
        daemon.FailedToDropPrivileges("sudo refuses"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_container_that_fails_does_not_keep_the_mounts_from_the_others(
    caplog: pytest.LogCaptureFixture, failure: Exception
) -> None:
    listing: Any = SimpleNamespace(
        servers=lambda: {name: SimpleNamespace(id=name, name=name) for name in ("a", "b")}
    )
    engine: Any = SimpleNamespace(
        inspect_container=lambda _id: SimpleNamespace(pid=1), within=nullcontext
    )
    failing, restored = {"a"}, []

    def restore(container_id: str, _pid: int, _folder: str) -> int:
        if container_id in failing:
            raise failure
        restored.append(container_id)
        return 1

    loads: Any = None
    found = Lxcfs("/lxcfs", engine, listing, loads, restore)
    found._restore_all(1)
    assert restored == ["b"]
    assert f"Failed to replace mounts of lxcfs in container a: {failure}" in caplog.text
    assert found._restored is None
    failing.clear()
    found._restore_all(1)
    assert found._restored == 1


def test_a_container_that_hangs_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(lxcfs, "time", SimpleNamespace(monotonic=lambda: now))
    hung, inspected = {"a"}, []

    def inspect(container_id: str) -> Any:
        inspected.append(container_id)
        if container_id in hung:
            raise exception.ContainerHangs(operation="to inspect a container", seconds=10)
        return SimpleNamespace(pid=1)

    listing: Any = SimpleNamespace(
        servers=lambda: {name: SimpleNamespace(id=name, name=name) for name in ("a", "b")}
    )
    engine: Any = SimpleNamespace(inspect_container=inspect, within=nullcontext)
    loads: Any = None
    found = Lxcfs("/lxcfs", engine, listing, loads, lambda *_: 1)
    for _ in range(2):
        found._restore_all(1)
    assert inspected == ["a", "b"]
    # lxcfs restarts again.
    found._restore_all(2)
    assert inspected == ["a", "b", "b"]
    assert found._restored is None
    hung.clear()
    now += HUNG_SECONDS
    found._restore_all(2)
    assert inspected == ["a", "b", "b", "a"]
    assert found._restored == 2


def test_a_build_gets_the_view_between_two_containers(tmp_path: Path) -> None:
    asked: list[float] = []

    def inspect(container_id: str) -> Any:
        if asked:
            assert found.mounts(container_id, asked[0]) == ()
        asked.append(found.look())
        raise exception.ContainerHangs(operation="to inspect a container", seconds=10)

    listing: Any = SimpleNamespace(
        servers=lambda: {name: SimpleNamespace(id=name, name=name) for name in ("a", "b")}
    )
    engine: Any = SimpleNamespace(inspect_container=inspect, within=nullcontext)
    loads: Any = None
    found = Lxcfs(str(tmp_path), engine, listing, loads)
    found._restore_all(1)
    assert len(asked) == 2


def test_failures_of_a_container_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    listing: Any = SimpleNamespace(
        servers=lambda: {name: SimpleNamespace(id=name, name=name) for name in ("a", "b")}
    )
    engine: Any = SimpleNamespace(
        inspect_container=lambda _id: SimpleNamespace(pid=1), within=nullcontext
    )
    failures: list[Exception] = [ValueError("malformed"), KeyError("missing"), ValueError("again")]
    restored = []

    def restore(container_id: str, _pid: int, _folder: str) -> int:
        if container_id == "a":
            raise failures.pop(0)
        restored.append(container_id)
        return 0

    loads: Any = None
    found = Lxcfs("/lxcfs", engine, listing, loads, restore)
    for _ in range(3):
        found._restore_all(1)
    assert (failures, restored) == ([], ["b"])
    (line,) = caplog.records
    assert line.getMessage() == "Failed to replace mounts of lxcfs in container a: malformed"
    assert found._restored is None


def test_a_process_of_a_server_is_not_taken_for_lxcfs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def process(number: int, *options: str) -> SimpleNamespace:
        arguments = ["lxcfs", *options, "/lxcfs/"]
        return SimpleNamespace(pid=number, info={"name": "lxcfs", "cmdline": arguments})

    for name, ids in (("self", "1"), ("7", "7\t2"), ("8", "8")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status").write_text(f"Name:\tlxcfs\nNSpid:\t{ids}\n")
    monkeypatch.setattr(lxcfs, "_PROC", tmp_path)
    monkeypatch.setattr(
        lxcfs.psutil, "process_iter", lambda _: [process(7, "--enable-loadavg"), process(8, "-f")]
    )
    assert lxcfs._read_arguments("/lxcfs") == ("lxcfs", "-f", "/lxcfs/")
