# SPDX-License-Identifier: Apache-2.0
"""Config drives that another host sent: none leads root or the engine to a file of this host."""

import io
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from novadocker import privsep
from novadocker.privsep.guest import config_drive
from novadocker.privsep.storage import drive_files, staging, tree_stream
from novadocker.privsep.storage.allowance import Allowance

UUID = "01234567-89ab-cdef-0123-456789abcdef"
TOKEN = "0" * 32
HOST = "host"
SECRET = b"of the host"
ME = {"uid": os.getuid(), "gid": os.getgid(), "mtime": 0}

# The device is /dev/null.
KINDS: dict[str, dict[str, Any]] = {
    "link": {"mode": stat.S_IFLNK | 0o777},
    "device": {"mode": stat.S_IFCHR | 0o600, "rdev": os.makedev(1, 3)},
    "pipe": {"mode": stat.S_IFIFO | 0o600},
}


class Peer:
    """A host that sends a config drive with the number 1 of a move.

    :ivar target: the directory of the drive on this host
    """

    def __init__(self, data_root: Path, drives: Path) -> None:
        self._data_root = data_root
        self._staged = data_root / staging.FOLDER / f"{UUID}.{TOKEN}"
        self._staged.mkdir(parents=True, exist_ok=True)
        self._stream = b""
        self.target = drives / HOST / UUID
        self.folder("")

    def entry(self, path: str, content: bytes = b"", **fields: Any) -> None:
        place = f"1/{path}".rstrip("/")
        self._stream += json.dumps({"path": place, **ME, **fields}).encode() + b"\n" + content

    def folder(self, path: str) -> None:
        self.entry(path, mode=stat.S_IFDIR | 0o755)

    def file(self, path: str, content: bytes, **fields: Any) -> None:
        size = len(content)
        sent = {"mode": stat.S_IFREG | 0o400, "size": size, "pieces": [[0, size]], **fields}
        self.entry(path, content, **sent)

    def adopt(self) -> bool:
        """Stage what was sent, and adopt it."""
        top = os.open(self._staged, os.O_RDONLY | os.O_DIRECTORY)
        try:
            stream = io.BytesIO(self._stream + b'{"end": 1}\n')
            tree_stream.Writer(top, Allowance(0)).apply(stream)
        finally:
            os.close(top)
        return self.adopt_again()

    def adopt_again(self) -> bool:
        return staging.adopt_folder(str(self._data_root), UUID, TOKEN, 1, str(self.target))

    def staged(self) -> list[str]:
        return os.listdir(self._staged)


@pytest.fixture(params=["same", "other"])
def peer(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Peer]:
    """Return a host whose drives are on the file system of the data root, or on another one."""
    for context in (privsep.transfer_pctxt, privsep.network_pctxt):
        monkeypatch.setattr(context, "client_mode", False)
    (tmp_path / "docker/overlay2").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/file").write_bytes(SECRET)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        base = Path(other) if request.param == "other" else tmp_path
        assert (base.stat().st_dev != tmp_path.stat().st_dev) == (request.param == "other")
        drives = base / "novadocker/config-drives"
        monkeypatch.setattr(config_drive, "FOLDER", drives)
        monkeypatch.setattr(staging, "DRIVES", drives)
        yield Peer(tmp_path / "docker", drives)


def below(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return the modes and contents of what is below a directory."""
    return {
        str(path.relative_to(folder)): (
            stat.S_IMODE(path.lstat().st_mode),
            path.read_bytes() if path.is_file() else b"",
        )
        for path in folder.rglob("*")
    }


def test_a_drive_is_adopted_once(peer: Peer) -> None:
    peer.folder("files")
    peer.folder("files/openstack")
    # The modes are those that this host gives its own drives.
    peer.file("files/openstack/data", b"data", mode=stat.S_IFREG | 0o4777)
    peer.file(drive_files.IMAGE, b"image")
    peer.target.mkdir(parents=True)
    (peer.target / "old").touch()
    assert peer.adopt()
    found = {
        "files": (0o755, b""),
        "files/openstack": (0o755, b""),
        "files/openstack/data": (0o400, b"data"),
        "config-2.iso": (0o400, b"image"),
    }
    assert below(peer.target) == found
    assert drive_files.read_image(peer.target) == b"image"
    assert peer.staged() == []
    assert not peer.adopt_again()
    assert below(peer.target) == found
    assert os.listdir(peer.target.parent) == [UUID]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["config-2.iso", "files", "files/data", "files/a/data", "other"])
def test_what_is_no_file_is_refused(peer: Peer, tmp_path: Path, kind: str, place: str) -> None:
    if kind == "device" and os.getuid():
        pytest.skip("only root can create a device")
    target = tmp_path / "secret" / ("" if place == "files" else "file")
    for folder in Path(place).parents:
        if folder.name:
            peer.folder("files")
            peer.folder(str(folder))
    sent = KINDS[kind]
    peer.entry(place, **sent, **({"target": str(target)} if kind == "link" else {}))
    kept(peer)


def kept(peer: Peer) -> None:
    """Check that a drive is refused, and that this host keeps the one that it has."""
    drive_files.write(peer.target, drive_files.Drive({"own": b"own"}, (os.getuid(), os.getgid())))
    before = below(peer.target)
    with pytest.raises(OSError, match="the config drive"):
        peer.adopt()
    assert below(peer.target) == before
    assert os.listdir(peer.target.parent) == [UUID]


@pytest.mark.parametrize(
    "path",
    ["config-2.iso/file", "other/file", "other", "files", "files/ä", "files/.x", "files/\udcff"],
)
def test_unknown_names_are_refused(peer: Peer, path: str) -> None:
    above = path.rpartition("/")[0]
    if above:
        peer.folder(above)
    peer.file(path, b"")
    kept(peer)


def test_a_second_name_is_refused(peer: Peer) -> None:
    peer.folder("files")
    peer.file("files/one", b"one")
    peer.entry("files/two", mode=stat.S_IFREG | 0o400, link="1/files/one")
    kept(peer)


def test_several_owners_are_refused(peer: Peer) -> None:
    if os.getuid():
        pytest.skip("only root can give files away")
    peer.folder("files")
    peer.file("files/one", b"one")
    peer.file("files/two", b"two", uid=1000)
    kept(peer)


@pytest.mark.parametrize("size", [drive_files.MOST_BYTES + 1, 1 << 40])
def test_a_large_drive_is_refused(peer: Peer, size: int) -> None:
    peer.folder("files")
    peer.file(drive_files.IMAGE, b"", size=size, pieces=[])
    kept(peer)


def test_many_names_are_refused(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drive_files, "_MOST_NAMES", 10)
    peer.folder("files")
    for number in range(10):
        peer.folder(f"files/{number}")
    kept(peer)


@pytest.mark.parametrize("kind", [*KINDS, "large"])
def test_the_device_has_no_other_file(
    peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A drive of an old release, which adopted what it got."""
    if kind == "device" and os.getuid():
        pytest.skip("only root can create a device")
    peer.target.mkdir(parents=True)
    image = peer.target / drive_files.IMAGE
    if kind == "link":
        image.symlink_to(tmp_path / "secret/file")
    elif kind == "large":
        image.touch()
        os.truncate(image, 1 << 40)
    else:
        os.mknod(image, KINDS[kind]["mode"], KINDS[kind].get("rdev", 0))

    def attach(image: int, *_: object) -> None:
        raise AssertionError(f"a device has {os.pread(image, 100, 0)!r}")

    monkeypatch.setattr(config_drive.loop, "attach", attach)
    monkeypatch.setattr(config_drive, "LINKS", tmp_path / "run/drives")
    (tmp_path / "run").mkdir()
    with pytest.raises(OSError, match=r"not a regular file|more than"):
        config_drive.attach_device(HOST, UUID)
