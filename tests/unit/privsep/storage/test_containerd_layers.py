# SPDX-License-Identifier: Apache-2.0
"""The directories of a container's files that containerd's image store has."""

from pathlib import Path

import pytest

from novadocker import privsep
from novadocker.privsep.storage import containerd_layers

CONTAINER = "f2" * 32
ROOT = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots"
FOLDERS = [f"{ROOT}/{number}/fs" for number in (3, 2, 1)]
OPTIONS = f"workdir={ROOT}/3/work,upperdir={FOLDERS[0]},lowerdir={':'.join(FOLDERS[1:])},index=off"
MOUNT = f"mount -t overlay overlay / -o {OPTIONS}"


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the privileged functions in this process."""
    monkeypatch.setattr(privsep.storage_pctxt, "client_mode", False)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path at which a test puts the program ctr."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "ctr"


def write(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def listed() -> list[str]:
    return list(containerd_layers.list_folders("/run/containerd/containerd.sock", CONTAINER))


def test_the_containers_own_directory_is_the_first(program: Path, tmp_path: Path) -> None:
    write(program, f'echo "$*" >{tmp_path}/said; echo "{MOUNT}"')
    assert listed() == FOLDERS
    assert (tmp_path / "said").read_text() == (
        "--address /run/containerd/containerd.sock --namespace moby"
        f" snapshots --snapshotter overlayfs mounts / {CONTAINER}\n"
    )


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'ctr: snapshot f2 does not exist: not found' >&2; exit 1", "f2 does not exist"),
        ("exit 3", "exit status 3"),
        ("true", "is no overlay"),
        (f"echo 'mount -t bind {FOLDERS[0]} / -o rbind,rw'", "is no overlay"),
        (f"echo '{MOUNT.replace(FOLDERS[2], '/etc')}'", "is no overlay"),
        (f"echo '{MOUNT.replace(FOLDERS[0], '/etc')}'", "is no overlay"),
        (f"echo 'mount -t overlay overlay / -o lowerdir={FOLDERS[1]}'", "is no overlay"),
        ("exec sleep 60", "within 1 seconds"),
    ],
)
def test_answers_without_directories(
    program: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    monkeypatch.setattr(containerd_layers, "_SECONDS", 1)
    write(program, script)
    with pytest.raises(OSError, match=reason):
        listed()


def test_a_host_without_ctr(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="ctr of containerd is not installed"):
        listed()
