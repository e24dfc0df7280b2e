# SPDX-License-Identifier: Apache-2.0
"""Files of layers that a process writes, which is this process."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from novadocker import privsep
from novadocker.privsep.storage import unpacking

LAYER = "a" * 64


@pytest.fixture(autouse=True)
def unprivileged() -> Iterator[None]:
    privsep.storage_pctxt.set_client_mode(False)
    yield
    privsep.storage_pctxt.set_client_mode(True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "overlay2" / LAYER / "diff" / "usr").mkdir(parents=True)
    (tmp_path / "volumes").mkdir()
    return tmp_path


def now() -> int:
    return int(time.time())


def begin(root: Path) -> int:
    return int((root / "overlay2" / LAYER).stat().st_mtime)


def break_off(root: Path) -> int:
    return unpacking.break_off(str(root), now() - 60, now())


def test_a_file_that_is_written_can_not_grow(root: Path) -> None:
    path = root / "overlay2" / LAYER / "diff/usr/zeros"
    with path.open("wb", buffering=0) as file:
        file.write(bytes(1 << 20))
        assert unpacking.begins(str(root), now() - 60) == [begin(root)]
        assert break_off(root) == 1
        with pytest.raises(OSError, match="File too large") as caught:
            file.write(bytes(1 << 20))
        assert caught.value.errno == errno.EFBIG
        assert os.fstat(file.fileno()).st_blocks == 0
    assert unpacking.begins(str(root), now() - 60) == []


def test_older_layers_are_left_alone(root: Path) -> None:
    os.utime(root / "overlay2" / LAYER, (now() - 100, now() - 100))
    with (root / "overlay2" / LAYER / "diff/zeros").open("wb", buffering=0) as file:
        assert break_off(root) == 0
        assert file.write(b"written") == 7


def test_layers_begun_after_the_pull_are_left_alone(root: Path) -> None:
    with (root / "overlay2" / LAYER / "diff/honest").open("wb", buffering=0) as file:
        assert unpacking.break_off(str(root), begin(root) - 60, begin(root) - 1) == 0
        assert file.write(b"written") == 7
        assert unpacking.break_off(str(root), begin(root), begin(root)) == 1


@pytest.mark.parametrize("size", [4030, 4094])
def test_a_path_that_is_long_on_the_host_does_not_escape(root: Path, size: int) -> None:
    """The engine's path begins at the layer's directory, so it has room for a longer one."""
    diff = root / "overlay2" / LAYER / "diff"
    names = ["d" * 200] * 20
    names.append("f" * (size - len("/".join(names)) - 1))
    script = """if True:
        import os, sys
        os.chroot(sys.argv[1])
        os.chdir("/")
        os.makedirs(os.path.dirname(sys.argv[2]))
        file = open(sys.argv[2], "wb", buffering=0)
        print(file.write(b"written"), flush=True)
        sys.stdin.readline()
        try:
            file.write(b"more")
        except OSError as error:
            print(error.errno)
    """
    command = [sys.executable, "-c", script, str(diff), "/".join(names)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as engine:
        assert engine.stdout
        assert engine.stdout.readline() == "7\n"
        assert unpacking.begins(str(root), now() - 60) == [begin(root)]
        assert break_off(root) == 1
        out, _ = engine.communicate("\n", timeout=30)
    assert out == f"{errno.EFBIG}\n"


def test_processes_of_servers_are_not_looked_at(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = {os.getpid(): "a" * 64}
    monkeypatch.setattr(unpacking.cgroup, "container_of_process", groups.get)
    with (root / "overlay2" / LAYER / "diff/zeros").open("wb", buffering=0):
        # The host itself may be a container.
        assert unpacking.begins(str(root), now() - 60) == [begin(root)]
        monkeypatch.setattr(unpacking.os, "getpid", lambda: 1)
        assert unpacking.begins(str(root), now() - 60) == []


@pytest.mark.parametrize(
    "path", ["volumes/data", f"overlay2/{LAYER}/data", "overlay2/data", "overlay2/l/diff/data"]
)
def test_files_outside_of_layers_are_left_alone(root: Path, path: str) -> None:
    (root / "overlay2/l/diff").mkdir(parents=True)
    with (root / path).open("wb", buffering=0) as file:
        assert break_off(root) == 0
        assert file.write(b"written") == 7


def test_readers_are_left_alone(root: Path) -> None:
    path = root / "overlay2" / LAYER / "diff/file"
    path.write_bytes(b"content")
    with path.open("rb") as file:
        assert break_off(root) == 0
        assert file.read() == b"content"


def test_another_file_of_the_same_path_is_left_alone(root: Path) -> None:
    """A server's process may have a file of this path in its own file system."""
    path = root / "overlay2" / LAYER / "diff/file"
    with path.open("wb", buffering=0) as file:
        path.unlink()
        path.write_bytes(b"another")
        assert break_off(root) == 0
        assert file.write(b"written") == 7
    assert path.read_bytes() == b"another"


def test_a_link_of_a_layer_is_not_followed(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    diff = root / "overlay2" / LAYER / "diff"
    (diff / "link").symlink_to(outside)
    with (outside / "file").open("wb", buffering=0) as file:
        assert break_off(root) == 0
        assert file.write(b"written") == 7


def test_an_engine_with_another_storage_driver(tmp_path: Path) -> None:
    assert unpacking.begins(str(tmp_path), now()) == []
