# SPDX-License-Identifier: Apache-2.0
"""The control groups of a process, in trees of files like the kernel's."""

import os
from pathlib import Path

import pytest

from novadocker.linux import cgroup, openat

ID, OTHER = "5e" * 32, "0b" * 32
V1 = f"9:name=systemd:/docker/{ID}\n8:cpu,memory:/docker/{ID}\n0::/docker/{ID}\n"
V1_FILE = f"sys/fs/cgroup/cpu,memory/docker/{ID}/memory.oom_control"
V2_FILE = f"sys/fs/cgroup/docker/{ID}/memory.events"
V2_EVENTS = "low 0\nmax 9\noom 5\noom_kill 4\noom_group_kill 0\n"
# What ends a line for splitlines() of str or bytes and not for the kernel, and what is not UTF-8.
ODD_NAMES = [
    b"\v",
    b"\f",
    b"\r",
    b"\x1c",
    b"\x1d",
    b"\x1e",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"\x85",
    b"\xff",
]


def put(root: Path, path: str, content: bytes) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_bytes(content)


def put_groups(root: Path, version: int, content: bytes) -> None:
    if version == 2:
        put(root, "sys/fs/cgroup/cgroup.controllers", b"cpu memory\n")
    put(root, "proc/7/cgroup", content)


@pytest.mark.parametrize(
    ("version", "groups", "file", "content", "expected"),
    [
        (1, V1, V1_FILE, "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", 3),
        (2, f"0::/docker/{ID}\n", V2_FILE, V2_EVENTS, 4),
        # systemd as the first process: the kernel's count of the container includes this group.
        (2, f"0::/docker/{ID}/init.scope\n", V2_FILE, V2_EVENTS, 4),
        # A kernel before 4.13.
        (1, V1, V1_FILE, "oom_kill_disable 0\nunder_oom 0\n", 0),
        (1, V1, V2_FILE, "oom_kill 4\n", 0),
        (1, "8:memory:/\n", V1_FILE, "oom_kill 3\n", 0),
    ],
)
def test_oom_kills(
    tmp_path: Path, version: int, groups: str, file: str, content: str, expected: int
) -> None:
    put_groups(tmp_path, version, groups.encode())
    put(tmp_path, file, content.encode())
    assert cgroup.read_oom_kills(7, ID, tmp_path) == expected


def test_no_oom_kills_of_a_process_that_ended(tmp_path: Path) -> None:
    assert cgroup.read_oom_kills(7, ID, tmp_path) == 0


def test_version(tmp_path: Path) -> None:
    put(tmp_path, "sys/fs/cgroup/unified/cgroup.controllers", b"")
    assert cgroup.version(tmp_path) == 1
    put(tmp_path, "sys/fs/cgroup/cgroup.controllers", b"cpu\n")
    assert cgroup.version(tmp_path) == 2


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"/docker/{ID}", ID),
        (f"/system.slice/docker-{ID}.scope/init.scope", ID),
        # A tenant chose the names below the container's own group.
        (f"/docker/{ID}/{OTHER}", ID),
        (f"/system.slice/docker-{ID}.scope/docker-{OTHER}.scope", ID),
        (f"/docker/{ID}0", None),
        (f"/docker/x{ID}", None),
        (f"/docker/{ID} (deleted)", None),
        ("/system.slice", None),
        ("/", None),
    ],
)
def test_the_container_of_a_path(path: str, expected: str | None) -> None:
    assert cgroup.container_of_path(path) == expected


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (V1.encode(), ID),
        (f"0::/docker/{ID}/{OTHER}\n".encode(), ID),
        (b"0::/\n", None),
        (b"", None),
        (b"0\n", None),
        (f"9:memory:/docker/{ID}\n8:pids:/docker/{OTHER}\n".encode(), None),
    ],
)
def test_the_container_of_a_process(tmp_path: Path, groups: bytes, expected: str | None) -> None:
    put_groups(tmp_path, 1, groups)
    assert cgroup.container_of_process(7, tmp_path) == expected


def test_the_container_of_a_process_whose_groups_cannot_be_read(tmp_path: Path) -> None:
    assert cgroup.container_of_process(7, tmp_path) is None
    # Like ENAMETOOLONG of a path beyond PATH_MAX, this is an OSError that no process's end causes.
    (tmp_path / "proc/7/cgroup").mkdir(parents=True)
    assert cgroup.container_of_process(7, tmp_path) is None


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_line_ends_at_a_line_feed_alone(tmp_path: Path, name: bytes) -> None:
    # The tenant's groups are named a, the byte, "9:memory:"; then docker; then another's id.
    forged = b"/a%s9:memory:/docker/%s" % (name, OTHER.encode())
    own = f"/docker/{ID}".encode()
    put_groups(tmp_path, 1, b"9:memory:%s\n1:name=systemd:%s%s\n" % (own, own, forged))
    assert cgroup.container_of_process(7, tmp_path) == ID
    found = cgroup.groups(7, ID, tmp_path)
    assert found.version == 1
    assert found.directories["memory"] == tmp_path / f"sys/fs/cgroup/memory/docker/{ID}"
    with pytest.raises(ProcessLookupError):
        cgroup.groups(7, OTHER, tmp_path)


@pytest.mark.parametrize("name", [OTHER, f"docker-{OTHER}.scope", f"x{OTHER}", f"{OTHER}.slice"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_group_with_the_id_of_another_container(tmp_path: Path, version: int, name: str) -> None:
    controllers = "9:memory" if version == 1 else "0:"
    put_groups(tmp_path, version, f"{controllers}:/docker/{ID}/{name}\n".encode())
    with pytest.raises(ProcessLookupError, match="process 7 is not in container 0b"):
        cgroup.groups(7, OTHER, tmp_path)
    assert cgroup.groups(7, ID, tmp_path).directories


def test_the_id_must_be_a_whole_name(tmp_path: Path) -> None:
    put_groups(tmp_path, 1, f"9:memory:/docker/x{ID}x\n".encode())
    with pytest.raises(ProcessLookupError):
        cgroup.groups(7, ID, tmp_path)


@pytest.mark.parametrize("found", [None, OTHER])
def test_a_process_of_another_container_is_refused(
    monkeypatch: pytest.MonkeyPatch, found: str | None
) -> None:
    monkeypatch.setattr(cgroup, "container_of_process", lambda _: found)
    with openat.pinned(os.getpid()) as process:
        with pytest.raises(ProcessLookupError, match="process 7 is not in container 5e"):
            openat.check_process(ID, 7, process)
        if found:
            openat.check_process(found, 7, process)
