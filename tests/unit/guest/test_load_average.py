# SPDX-License-Identifier: Apache-2.0
"""Load averages: the kernel's arithmetic, proc(5)'s format, and files that survive their writer."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import Mock

import pytest

from novadocker import exception, naming
from novadocker.state_files import load_averages
from novadocker.virt.docker.containers.servers import ServerList
from novadocker.virt.docker.guest import load_average
from novadocker.virt.docker.guest.load_average import Averages, Loads, Tasks
from novadocker.virt.docker.model import Mount
from tests.unit import fakes

UUID = "0e6e0b4b-7a41-4f0b-9f1a-0f64e1f5a1c1"


@pytest.mark.parametrize(
    ("before", "seconds", "tasks", "after"),
    [
        ((0.0, 0.0, 0.0), 5, Tasks(), (0.0, 0.0, 0.0)),
        # 1 - exp(-5/60), 1 - exp(-5/300), 1 - exp(-5/900)
        ((0.0, 0.0, 0.0), 5, Tasks(running=1), (0.07996, 0.01653, 0.00554)),
        ((0.0, 0.0, 0.0), 5, Tasks(uninterruptible=1), (0.07996, 0.01653, 0.00554)),
        ((0.0, 0.0, 0.0), 5, Tasks(running=2, uninterruptible=1), (0.23987, 0.04959, 0.01662)),
        ((2.0, 2.0, 2.0), 5, Tasks(running=2), (2.0, 2.0, 2.0)),
        ((1.0, 1.0, 1.0), 60, Tasks(), (0.36788, 0.81873, 0.93551)),
        # A day without nova-compute.
        ((9.0, 9.0, 9.0), 86_400, Tasks(running=4), (4.0, 4.0, 4.0)),
    ],
)
def test_averages(
    before: tuple[float, ...], seconds: float, tasks: Tasks, after: tuple[float, ...]
) -> None:
    assert Averages(before).after(seconds, tasks).values == pytest.approx(after, abs=1e-5)


def test_two_looks_are_as_good_as_one_long_one() -> None:
    tasks = Tasks(running=3)
    twice = Averages((1.0, 2.0, 3.0)).after(2, tasks).after(3, tasks)
    assert twice.values == pytest.approx(Averages((1.0, 2.0, 3.0)).after(5, tasks).values)


def test_a_line_is_read_back_and_leaves_nothing_of_a_longer_one() -> None:
    line = load_average.render(Averages((0.5, 12.345, 100.0)), Tasks(2, 1, 40, 4711))
    assert line.split() == [b"0.50", b"12.35", b"100.00", b"2/40", b"4711"]
    assert load_averages.parse(line.decode()) == (0.5, 12.35, 100.0)
    most = load_average.render(Averages((99_999.0,) * 3), Tasks(99_999, 0, 99_999, 4_194_304))
    assert len(most) == len(line)
    assert most.endswith(b"\n")


@pytest.mark.parametrize("line", [b"", b"\xff\n", b"1 2 3 4\n", b"nan inf 0.00 1/2 3\n", b"1.00\n"])
def test_a_malformed_line_is_read_as_zero(tmp_path: Path, line: bytes) -> None:
    (tmp_path / UUID).write_bytes(line)
    assert load_averages.read(tmp_path / UUID)[0] is None
    long_ago = datetime.fromtimestamp(0, UTC)
    assert load_average.read_file(tmp_path / UUID, long_ago)[0] == Averages()


def test_a_file_is_mounted_and_kept(tmp_path: Path) -> None:
    engine = fakes.FakeEngine()
    found = Loads(tmp_path, engine, ServerList(engine))
    file = tmp_path / "loads" / UUID
    assert found.mount(UUID) == Mount(str(file), "/proc/loadavg")
    assert file.read_text().split() == ["0.00", "0.00", "0.00", "0/0", "0"]
    assert file.stat().st_mode & 0o777 == 0o644
    file.write_bytes(b"1.00 2.00 3.00 1/2 3\n")
    found.mount(UUID)
    assert file.read_bytes() == b"1.00 2.00 3.00 1/2 3\n"
    found.delete(UUID)
    found.delete(UUID)
    assert not file.exists()


def test_averages_go_on_after_a_restart_of_nova_compute_but_not_of_the_server(
    tmp_path: Path,
) -> None:
    file = tmp_path / UUID
    file.write_bytes(load_average.render(Averages((1.0, 2.0, 3.0)), Tasks()))
    now = time.time()
    os.utime(file, (now - 30, now - 30))
    averages, age = load_average.read_file(file, datetime.fromtimestamp(now - 100, UTC))
    assert averages.values == (1.0, 2.0, 3.0)
    assert age == pytest.approx(30, abs=20)
    assert load_average.read_file(file, datetime.fromtimestamp(now - 10, UTC)) == (Averages(), 0.0)
    # The clock was set back meanwhile.
    os.utime(file, (now + 3600, now + 3600))
    assert load_average.read_file(file, datetime.fromtimestamp(now - 100, UTC))[1] == 0.0


@pytest.fixture
def busy() -> Iterator[int]:
    command = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


@pytest.fixture
def stopped() -> Iterator[int]:
    with subprocess.Popen(["sleep", "1d"]) as process:
        process.send_signal(signal.SIGSTOP)
        # A process that was just started may still run for a moment.
        os.waitpid(process.pid, os.WUNTRACED)
        yield process.pid
        process.kill()


def test_threads_are_counted_in_groups_below_too(tmp_path: Path, busy: int, stopped: int) -> None:
    gone = 1 << 22
    (tmp_path / "cgroup.threads").write_text(f"{stopped}\n{gone}\n")
    (tmp_path / "init.scope" / "deep").mkdir(parents=True)
    (tmp_path / "init.scope" / "cgroup.threads").write_text("")
    (tmp_path / "init.scope" / "deep" / "cgroup.threads").write_text(f"{busy}\n")
    tasks = load_average.count_tasks(tmp_path, "cgroup.threads")
    assert (tasks.running, tasks.total) == (1, 3)
    assert tasks.last == 0
    (tmp_path / "cgroup.threads").write_text(f"{stopped}\n")
    assert load_average.count_tasks(tmp_path, "cgroup.threads").last == max(busy, stopped)
    with pytest.raises(FileNotFoundError):
        load_average.count_tasks(tmp_path / "gone", "cgroup.threads")


def nest(top: Path, deep: int) -> None:
    """Nest directories below another, and write a thread's number into each."""
    descriptor = os.open(top, os.O_RDONLY)
    for _ in range(deep):
        os.mkdir("n" * 200, dir_fd=descriptor)
        inner = os.open("n" * 200, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
        file = os.open("tasks", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor)
        os.write(file, b"1\n")
        os.close(file)
    os.close(descriptor)


def test_groups_that_a_tenant_nests_are_counted_to_a_limit(tmp_path: Path) -> None:
    (tmp_path / "tasks").write_text("1\n")
    try:
        nest(tmp_path, 1100)
        assert load_average.count_tasks(tmp_path, "tasks").total == 13
    finally:
        # The paths are too long for pytest, which else removes the directories.
        subprocess.run(["rm", "-rf", str(tmp_path / ("n" * 200))], check=True, timeout=60)


def test_groups_side_by_side_are_counted_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_average, "_MOST_GROUPS", 10)
    for name in ("", *(f"{number}/{inner}" for number in range(8) for inner in "abc")):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    for group in (tmp_path, *(path for path in tmp_path.rglob("*") if path.is_dir())):
        (group / "tasks").write_text("1\n")
    assert load_average.count_tasks(tmp_path, "tasks").total == 10


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV, errno.EACCES])
def test_a_group_below_that_cannot_be_read_is_not_counted(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for group in (tmp_path, tmp_path / "below", tmp_path / "other"):
        group.mkdir(exist_ok=True)
        (group / "tasks").write_text("1\n")

    def fail(path: str) -> Iterator[str]:
        if path == str(tmp_path / "below"):
            raise OSError(number, os.strerror(number))
        return below(path)

    below = load_average._groups_below
    monkeypatch.setattr(load_average, "_groups_below", fail)
    assert load_average.count_tasks(tmp_path, "tasks").total == 3


def watched(loads: Loads, tmp_path: Path, *uuids: str) -> None:
    for uuid in uuids:
        loads.mount(uuid)
        (tmp_path / uuid).mkdir()
        (tmp_path / uuid / "tasks").write_text("1\n")
        loads._watched[uuid] = load_average._Watched(
            "c" * 64, tmp_path / uuid, "tasks", Averages(), time.monotonic()
        )


def test_a_container_that_hangs_is_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = fakes.FakeEngine()
    loads = Loads(tmp_path, engine, ServerList(engine))
    loads.mount(UUID)
    labels = {naming.LABEL_UUID: UUID, naming.LABEL_SCHEMA: naming.SCHEMA}
    engine.add(naming.container_name(UUID), labels, "running")
    hangs = exception.ContainerHangs(operation="to inspect a container", seconds=10)
    inspect = Mock(side_effect=hangs)
    monkeypatch.setattr(engine, "inspect_container", inspect)
    for _ in range(3):
        loads._count()
    assert inspect.call_count == 1
    assert caplog.text.count("Failed to begin the load averages") == 1
    monkeypatch.setattr(load_average.time, "monotonic", lambda: 1e12)
    loads._count()
    assert inspect.call_count == 2


def test_a_fault_of_one_server_does_not_affect_the_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = fakes.FakeEngine()
    loads = Loads(tmp_path / "state", engine, ServerList(engine))
    uuids = [f"{number}{UUID[1:]}" for number in range(3)]
    watched(loads, tmp_path, *uuids)
    (tmp_path / uuids[1] / "tasks").write_text("not a number\n")
    for _ in range(3):
        loads._count()
    written = [load_averages.read(tmp_path / "state/loads" / uuid)[0] for uuid in uuids]
    assert [loads._watched[uuid].line != b"" for uuid in uuids] == [True, False, True]
    assert None not in written
    assert caplog.text.count("Failed to update the load averages of server") == 1
    assert uuids[1] in caplog.text
    (tmp_path / uuids[1] / "tasks").write_text("1\n")
    loads._count()
    assert loads._watched[uuids[1]].line != b""


@pytest.mark.parametrize(
    ("fault", "number"),
    [
        (exception.EngineError(operation="inspect the container", reason="a fault"), 3),
        (OSError(errno.ENAMETOOLONG, "a fault"), 3),
        (exception.EngineUnavailable(url="unix:", reason="a fault"), 1),
    ],
)
def test_a_fault_of_one_new_server_does_not_hide_the_others(
    tmp_path: Path,
    fault: Exception,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = fakes.FakeEngine()
    loads = Loads(tmp_path, engine, ServerList(engine))
    uuids = [f"{number}{UUID[1:]}" for number in range(3)]
    for uuid in uuids:
        loads.mount(uuid)
        labels = {naming.LABEL_UUID: uuid, naming.LABEL_SCHEMA: naming.SCHEMA}
        engine.add(naming.container_name(uuid), labels, "running")
    looked: list[str] = []

    def fail(instance_uuid: str, container_id: str) -> None:
        looked.append(instance_uuid)
        raise fault

    monkeypatch.setattr(loads, "_watch", fail)
    loads._count()
    assert len(set(looked)) == number
    logged = [line for line in caplog.messages if line.startswith("Failed to update")]
    assert len(logged) == (number if number > 1 else 0)
