# SPDX-License-Identifier: Apache-2.0
"""The directories of suspended servers' memory, without CRIU and without a container."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from novadocker import privsep
from novadocker.linux import cgroup, libc, openat
from novadocker.privsep.guest import checkpoint
from novadocker.runtime import record as records

HOST = "host1"
UUID = "0e6e0b4b-7a41-4f0b-9f1a-0f64e1f5a1c1"
ID = "ab" * 32
RUN = "2026-12-01T10:00:00.123456789Z"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of an instance's images; run privileged functions in this process."""
    for context in (privsep.network_pctxt, privsep.interior_pctxt, privsep.storage_pctxt):
        monkeypatch.setattr(context, "client_mode", False)
    monkeypatch.setattr(checkpoint, "FOLDER", tmp_path / "checkpoints")
    monkeypatch.setattr(checkpoint, "RECORDS", tmp_path / "records")
    monkeypatch.setattr(cgroup, "processes", lambda: iter([(1, None)]))
    found = tmp_path / "checkpoints" / HOST / UUID
    found.mkdir(parents=True)
    (tmp_path / "records").mkdir()
    return found


def images(folder: Path, suffix: str = "", run: str = f"{ID} {RUN}") -> Path:
    made = folder / f"{ID}{suffix}"
    made.mkdir()
    (made / "novadocker-run").write_text(run)
    return made


def test_only_whole_images_end_the_processes(folder: Path) -> None:
    images(folder, ".draft")
    assert not checkpoint.end_processes(HOST, UUID, ID)
    assert not checkpoint.has_ended_processes(HOST, UUID, ID, RUN)
    images(folder, ".frozen")
    assert checkpoint.end_processes(HOST, UUID, ID)
    assert checkpoint.has_ended_processes(HOST, UUID, ID, RUN)
    # The processes of a later run live.
    assert not checkpoint.has_ended_processes(HOST, UUID, ID, "2026-12-01T11:00:00Z")
    assert not (folder / f"{ID}.frozen").exists()
    # Idempotent.
    assert checkpoint.end_processes(HOST, UUID, ID)


def test_images_of_an_earlier_run_are_replaced(folder: Path) -> None:
    images(folder, run="earlier")
    images(folder, ".frozen")
    assert checkpoint.end_processes(HOST, UUID, ID)
    assert (folder / ID / "novadocker-run").read_text() == f"{ID} {RUN}"


@pytest.fixture
def container(folder: Path, criu: str, trusted: None, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the first process of a frozen container, which a fake CRIU can save."""
    monkeypatch.setattr(openat, "check_process", lambda *_: None)
    for name in ("_check_frozen", "_check_tree", "_check_connections", "_check_room"):
        monkeypatch.setattr(checkpoint, name, lambda *_: None)
    monkeypatch.setattr(checkpoint, "_runc_state", lambda *_: "/run/runc")

    def write(criu: str, state: str, container: str, images: Path) -> None:
        (images / "pages-1.img").write_text("memory")

    monkeypatch.setattr(checkpoint, "_checkpoint", write)
    monkeypatch.setattr(libc, "syncfs", lambda _: None)
    return os.getpid()


def test_a_dump_replaces_what_earlier_ones_have_left(
    folder: Path, criu: str, container: int
) -> None:
    """The start would not restore while images that an earlier one has restored are there."""
    for suffix in (".draft", ".frozen", ".used"):
        images(folder, suffix, "earlier")
    checkpoint.dump(HOST, UUID, ID, container, RUN, criu)
    assert [path.name for path in folder.iterdir()] == [f"{ID}.frozen"]
    assert (folder / f"{ID}.frozen/novadocker-run").read_text() == f"{ID} {RUN}"


def test_a_container_that_ends_before_its_dump(
    folder: Path, criu: str, container: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that is not an OSError would set a frozen server to ERROR."""

    def ended(*_: object) -> str:
        raise psutil.NoSuchProcess(container)

    monkeypatch.setattr(checkpoint, "_runc_state", ended)
    with pytest.raises(ProcessLookupError, match="has ended"):
        checkpoint.dump(HOST, UUID, ID, container, RUN, criu)


def test_files_and_memory_are_on_the_disk_before_the_processes_end(
    tmp_path: Path, folder: Path, criu: str, container: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power loss, the processes must find the files that their memory knows."""
    shutil.rmtree(tmp_path / "checkpoints")
    written = []
    fsync = os.fsync

    def synced(descriptor: int) -> None:
        written.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def synced_files(descriptor: int) -> None:
        assert not (folder / f"{ID}.frozen").exists()
        written.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(libc, "syncfs", synced_files)
    checkpoint.dump(HOST, UUID, ID, container, RUN, criu)
    assert written[:3] == [str(tmp_path), *map(str, (folder.parents[1], folder.parent))]
    assert set(written[3:]) == {
        "/",
        str(folder / f"{ID}.draft"),
        str(folder / f"{ID}.draft/pages-1.img"),
        str(folder / f"{ID}.draft/novadocker-run"),
    }


def test_lists_and_deletes(folder: Path) -> None:
    assert checkpoint.exists(HOST, UUID)
    assert checkpoint.list_instances(HOST) == [UUID]
    assert checkpoint.list_instances("other") == []
    images(folder)
    checkpoint.discard(HOST, UUID)
    checkpoint.discard(HOST, UUID)
    assert not checkpoint.exists(HOST, UUID)


def test_a_directory_that_only_root_can_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators may close it, as it has secrets; all servers of the host start nevertheless."""

    def refuse(_path: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "stat", refuse)
    assert checkpoint.exists(HOST, UUID)
    assert not checkpoint.exists(HOST, f"{UUID[:-1]}2")


@pytest.fixture
def criu(tmp_path: Path) -> str:
    program = tmp_path / "criu"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return str(program)


@pytest.mark.usefixtures("trusted")
def test_the_next_start_restores(folder: Path, criu: str) -> None:
    record = checkpoint.RECORDS / ID
    record.write_bytes(records.serialize(records.of_instance(f"/run/netns/nova-{UUID}")))
    assert not checkpoint.restore_next(HOST, UUID, ID, RUN, criu)
    images(folder)
    assert not checkpoint.restore_next(HOST, UUID, ID, "2026-12-01T11:00:00Z", criu)
    # The test's directory is not the one that a record may name.
    with pytest.raises(ValueError, match="has a malformed restore"):
        checkpoint.restore_next(HOST, UUID, ID, RUN, criu)
    assert records.parse(record.read_bytes()).restore is None


def test_images_of_another_container(folder: Path) -> None:
    images(folder, run=f"{'cd' * 32} {RUN}")
    with pytest.raises(OSError, match="another container"):
        checkpoint.restore_next(HOST, UUID, ID, RUN, "")


def test_an_interrupted_restore(folder: Path) -> None:
    images(folder, ".used")
    with pytest.raises(OSError, match="a hard reboot starts it anew"):
        checkpoint.restore_next(HOST, UUID, ID, RUN, "")
    # The engine has recorded the start of the restored server.
    assert not checkpoint.restore_next(HOST, UUID, ID, "2026-12-01T11:00:00Z", "")
    (folder / f"{ID}.used/novadocker-run").unlink()
    with pytest.raises(OSError, match="a hard reboot starts it anew"):
        checkpoint.restore_next(HOST, UUID, ID, RUN, "")


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Trust the directories of the tests."""

    def opened(path: str) -> int:
        return os.open(path, os.O_PATH)

    monkeypatch.setattr(openat, "open_trusted", opened)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("[ $1 != --version ] || echo Version: 4.2.1", ""),
        ("[ $1 != --version ] || echo Version: 4.1", ""),
        ("echo Version: 3.17.1", "has the version 3.17, older than 4.1"),
        ("echo hello", "does not tell its version"),
        ("[ $1 != --version ] || { echo Version: 4.2; exit; }; echo No CAP; exit 1", "No CAP"),
        ("exit 3", "criu failed: it says nothing"),
    ],
)
@pytest.mark.skipif(os.getuid() != 0, reason="the program must belong to root")
def test_criu_is_asked(folder: Path, criu: str, trusted: None, script: str, reason: str) -> None:
    Path(criu).write_text(f"#!/bin/sh\n{script}\n")
    found = checkpoint.why_impossible(criu)
    assert reason in found
    assert bool(found) is bool(reason)


@pytest.mark.skipif(os.getuid() != 0, reason="the program must belong to root")
@pytest.mark.usefixtures("folder")
def test_nothing_is_run_beside_a_link_to_criu(tmp_path: Path, criu: str, trusted: None) -> None:
    """The caller names the link, and runc is searched in the directory of CRIU first."""
    link = tmp_path / "others" / "criu"
    link.parent.mkdir()
    link.symlink_to(criu)
    for name in ("criu", "runc"):
        Path(criu).with_name(name).write_text("#!/bin/sh\necho Version: 4.2\n")
    Path(criu).with_name("runc").chmod(0o755)
    (link.parent / "runc").symlink_to("/bin/false")
    assert checkpoint.why_impossible(str(link)) == ""
    checkpoint._checkpoint(checkpoint._find(str(link)), "/run/runc", ID, tmp_path)
    Path(criu).rename(tmp_path / "criu-ns")
    link.unlink()
    link.symlink_to(tmp_path / "criu-ns")
    assert "of another name" in checkpoint.why_impossible(str(link))


@pytest.mark.usefixtures("folder")
def test_a_program_that_others_can_change_is_not_run(criu: str, trusted: None) -> None:
    assert "there is no program" in checkpoint.why_impossible(
        str(Path(criu).parent.parent / "criu")
    )
    Path(criu).chmod(0o777)
    assert "users other than root can change" in checkpoint.why_impossible(criu)


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("", ""),
        ("Warn\n", ""),
        (
            "(0.5) Error (criu/files-ext.c:98): Can't dump file 3 of that type\n"
            "(0.6) Error (criu/cr-dump.c:2111): Dumping FAILED.\n",
            "CRIU: Can't dump file 3 of that type",
        ),
        (f"Error (a.c:1): {'x' * 500}\n", "CRIU: " + "x" * 194),
    ],
)
def test_the_first_error_is_the_reason(tmp_path: Path, log: str, reason: str) -> None:
    (tmp_path / "dump.log").write_text(log)
    assert checkpoint._first_error(tmp_path / "dump.log") == reason


@pytest.mark.parametrize(
    ("states", "open_"),
    [((), False), (("0A", "06"), False), (("0A", "01"), True), (("04",), True), (("08",), True)],
)
@pytest.mark.parametrize("name", ["tcp", "tcp6"])
def test_open_connections_are_refused(
    tmp_path: Path, name: str, states: tuple[str, ...], open_: bool
) -> None:
    net = tmp_path / "proc/7/net"
    net.mkdir(parents=True)
    lines = [f"   {n}: 0100007F:1E61 00000000:0000 {state} 0\n" for n, state in enumerate(states)]
    (net / name).write_text("  sl  local_address rem_address   st tx_queue\n" + "".join(lines))
    if not open_:
        checkpoint._check_connections(7, tmp_path)
        return
    with pytest.raises(OSError, match="open TCP connections"):
        checkpoint._check_connections(7, tmp_path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes namespaces")
@pytest.mark.parametrize("genuine", [True, False])
def test_a_process_of_a_tenant_is_no_shim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, genuine: bool
) -> None:
    """runc would read the state of a container that the tenant has made up, as root."""
    (tmp_path / "options.json").write_text('{"root": "/run/runc"}')
    shim = ["containerd-shim-runc-v2", "-namespace", "moby", "-id", ID]
    command = ["sh", "-c", "echo; read line"]
    if not genuine:
        command = ["unshare", "--pid", "--fork", *command]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        found = psutil.Process(process.pid)
        parent = found if genuine else found.children()[0]
        monkeypatch.setattr(psutil.Process, "parent", lambda _: parent)
        monkeypatch.setattr(psutil.Process, "cmdline", lambda _: shim)
        try:
            if genuine:
                assert checkpoint._runc_state(ID, os.getpid()) == "/run/runc/moby"
            else:
                with pytest.raises(OSError, match="not a child of containerd's shim"):
                    checkpoint._runc_state(ID, os.getpid())
        finally:
            process.communicate(b"\n")


def test_room(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "group"
    group.mkdir()
    (group / "memory.stat").write_text(f"total_rss {1 << 60}\ntotal_shmem 0\ntotal_swap 0\n")
    groups: Any = cgroup.Groups(1, {"memory": group})
    monkeypatch.setattr(cgroup, "groups", lambda *_: groups)
    with pytest.raises(OSError, match="which has"):
        checkpoint._check_room(ID, 1)
    (group / "memory.stat").write_text("total_rss 4096\ntotal_shmem 0\n")
    checkpoint._check_room(ID, 1)


@pytest.mark.parametrize("state", ["THAWED", "FREEZING", "FROZEN"])
def test_only_a_frozen_container_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    (tmp_path / "freezer.state").write_text(f"{state}\n")
    monkeypatch.setattr(cgroup, "groups", lambda *_: cgroup.Groups(1, {"freezer": tmp_path}))
    if state == "FROZEN":
        checkpoint._check_frozen(ID, 1)
        return
    with pytest.raises(OSError, match="not frozen"):
        checkpoint._check_frozen(ID, 1)
