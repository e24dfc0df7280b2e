# SPDX-License-Identifier: Apache-2.0
import contextlib
import errno
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from novadocker import naming
from novadocker.cmd import recover
from novadocker.recovery import copies, layers, mounts, progress, thin, verify
from novadocker.recovery.dataroot import DataRoot, RecoveryError, volume
from tests.unit.linux import swapping

UUID = "3f1c7f0e-5a39-4b44-9a0e-1de0a97c1b55"
CONTAINER = "c" * 64
LAYER = "d" * 64
SHORT = "l/" + "A" * 26
LABELS = {
    naming.LABEL_SCHEMA: naming.SCHEMA,
    naming.LABEL_UUID: UUID,
    naming.LABEL_NAME: "i1",
    naming.LABEL_FLAVOR: "small",
}
STORED: dict[str, Any] = {
    "Name": f"/nova-{UUID}",
    "Config": {"Labels": LABELS},
    "Driver": "overlay2",
    "Image": "sha256:" + "e" * 64,
    "MountPoints": {
        "/data": {"Type": "volume", "Name": "f" * 64, "Destination": "/data"},
        "/proc/uptime": {"Type": "bind", "Name": "", "Destination": "/proc/uptime"},
    },
}


@pytest.fixture
def root(tmp_path: Path) -> DataRoot:
    """Return a data root with one server on overlay2."""
    for folder in (
        f"containers/{CONTAINER}",
        "containers/not-one",
        f"image/overlay2/layerdb/mounts/{CONTAINER}",
        f"overlay2/{LAYER}/diff",
        "overlay2/base/diff",
        "overlay2/l",
    ):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "containers" / CONTAINER / "config.v2.json").write_text(json.dumps(STORED))
    (tmp_path / "image/overlay2/layerdb/mounts" / CONTAINER / "mount-id").write_text(LAYER)
    (tmp_path / "overlay2" / LAYER / "lower").write_text(SHORT)
    (tmp_path / "overlay2/base/link").write_text(SHORT.removeprefix("l/"))
    (tmp_path / "overlay2" / SHORT).symlink_to("../base/diff")
    return DataRoot(tmp_path)


def test_a_server_and_its_layers(root: DataRoot) -> None:
    (server,) = root.servers()
    assert (server.uuid, server.name, server.container) == (UUID, "i1", CONTAINER)
    assert [(volume.name, str(volume.destination)) for volume in server.volumes] == [
        ("f" * 64, "/data")
    ]
    assert layers.file_system(root, server).folders == (f"{LAYER}/diff", SHORT)


@pytest.mark.parametrize("wanted", [UUID, "i1", CONTAINER, CONTAINER[:12]])
def test_a_server_is_found(root: DataRoot, wanted: str) -> None:
    assert root.find(wanted).container == CONTAINER


@pytest.mark.parametrize("wanted", ["", "c", "i2"])
def test_what_is_not_found(root: DataRoot, wanted: str) -> None:
    with pytest.raises(RecoveryError, match="0 servers"):
        root.find(wanted)


def test_a_lost_short_name_is_found_by_its_layer(root: DataRoot) -> None:
    (root.path / "overlay2" / SHORT).unlink()
    # Another layer's file may be damaged.
    (root.path / "overlay2" / LAYER / "link").write_bytes(b"\xff")
    (root.path / "overlay2" / "other" / "link").mkdir(parents=True)
    assert layers.file_system(root, root.find(UUID)).folders[1] == "base/diff"


@pytest.mark.parametrize(
    ("file", "content", "text"),
    [
        (
            f"image/overlay2/layerdb/mounts/{CONTAINER}/mount-id",
            "../../../etc",
            "does not name a layer",
        ),
        (f"overlay2/{LAYER}/lower", "/etc:l/x", "is damaged"),
        (f"overlay2/{LAYER}/lower", "l/" + "B" * 26, "is missing"),
    ],
)
def test_forged_metadata_leads_nowhere(root: DataRoot, file: str, content: str, text: str) -> None:
    (root.path / file).write_text(content)
    with pytest.raises(RecoveryError, match=text):
        layers.file_system(root, root.find(UUID))


@pytest.mark.parametrize(
    "change",
    [
        {"MountPoints": {"/": {"Type": "volume", "Name": "../x", "Destination": "/"}}},
        {"MountPoints": {"x": {"Type": "volume", "Name": "x", "Destination": "relative"}}},
        {"Config": None},
        {"Config": {"Labels": ["x"]}},
    ],
)
def test_what_the_engine_can_not_have_written_is_damage(
    root: DataRoot, change: dict[str, Any]
) -> None:
    config = root.path / "containers" / CONTAINER / "config.v2.json"
    config.write_text(json.dumps({**STORED, **change}))
    (server,) = root.servers()
    assert "damaged" in server.damage
    assert server.driver == "overlay2"


def test_volumes_of_a_damaged_server(root: DataRoot, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a" * 64, "f" * 64):
        (root.path / "volumes" / name / "_data").mkdir(parents=True)
    assert root.unclaimed_volumes() == ["a" * 64]
    config = root.path / "containers" / CONTAINER / "config.v2.json"
    config.write_text(json.dumps(STORED, separators=(",", ":"))[:-2])
    assert recover.main(["--root", str(root.path), "list"]) == recover.DAMAGED
    shown = capsys.readouterr().out.split()
    assert {"a" * 64, "f" * 64} <= set(shown)
    server = recover.with_volumes(root.find(UUID), [f"/da=ta={'f' * 64}"])
    assert server.volumes == (volume("f" * 64, "/da=ta"),)
    for wrong in ("/data", "data=x", "/data=../x"):
        with pytest.raises(RecoveryError, match="has a malformed name or path"):
            recover.with_volumes(server, [wrong])


def test_foreign_containers_are_no_servers(root: DataRoot) -> None:
    config = root.path / "containers" / CONTAINER / "config.v2.json"
    config.write_text(json.dumps({**STORED, "Config": {"Labels": None}}))
    assert root.servers() == []


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        (f"/nova-{UUID}", {**LABELS, naming.LABEL_RESCUE: "1"}),
        ("/anything", LABELS),
    ],
)
@pytest.mark.parametrize("suffix", [naming.ASIDE, naming.AWAY])
def test_only_the_own_container_goes_by_the_servers_names(
    root: DataRoot,
    name: str,
    labels: dict[str, str],
    suffix: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = root.path / "containers" / ("d" * 64)
    folder.mkdir()
    beside = {**STORED, "Name": name, "Config": {"Labels": labels}}
    (folder / "config.v2.json").write_text(json.dumps(beside))
    own = root.path / "containers" / CONTAINER / "config.v2.json"
    own.write_text(json.dumps({**STORED, "Name": f"/nova-{UUID}{suffix}"}))
    for wanted in (UUID, "i1"):
        assert root.find(wanted).container == CONTAINER
    assert root.find("d" * 12).container == "d" * 64
    assert recover.main(["--root", str(root.path), "list"]) == 0
    first, second, remark = capsys.readouterr().out.splitlines()
    assert (first[38:50], second[38:50]) == ("c" * 12, "d" * 12)
    assert "not the server's own" in remark


def test_nobody_steers_the_terminal(
    root: DataRoot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = root.path / "containers" / CONTAINER / "config.v2.json"
    labels = {**LABELS, naming.LABEL_NAME: "\x1b[2Ji1"}
    config.write_text(json.dumps({**STORED, "Config": {"Labels": labels}}))
    assert recover.main(["--root", str(root.path), "list"]) == 0
    source, copy = tmp_path / "source", tmp_path / "copy"
    for folder in (source, copy):
        folder.mkdir()
    (source / os.fsdecode(b"\xff\n\x1b[2J")).touch()
    assert (
        recover.print_problems(list(verify.problems(source, copy)), as_json=False)
        == recover.DAMAGED
    )
    shown = capsys.readouterr().out
    assert shown.isascii()
    assert "\x1b" not in shown
    assert "/\\udcff\\n\\x1b[2J: the copy" in shown


def test_a_disk_that_may_not_be_read(
    root: DataRoot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert recover.main(["--root", str(root.path), "list"]) == recover.FAILED
    assert "Permission denied" in capsys.readouterr().err


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory at which a server is mounted."""
    found = tmp_path / "source"
    found.mkdir()
    (found / "log").write_text("lines\n")
    monkeypatch.setattr(recover, "mounted", lambda *_: contextlib.nullcontext(found))
    monkeypatch.setattr(DataRoot, "image_config", lambda *_: {"architecture": "arm64", "os": "x"})
    return found


@pytest.fixture
def tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that makes tar run a script when it has written an archive."""

    def replace(script: str) -> None:
        program = tmp_path / "bin" / "tar"
        program.parent.mkdir()
        program.write_text(
            f'#!/bin/sh\n{shutil.which("tar")} "$@"\n[ "$1" = --extract ] && exit\n{script}\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)

    return replace


@pytest.mark.parametrize("work", ["copy", "tar", "image"])
def test_what_changes_while_it_is_read(
    root: DataRoot,
    source: Path,
    tmp_path: Path,
    tar: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
    work: str,
) -> None:
    tar("printf 'tar: ./log\\342\\200\\256: file changed as we read it\\n' >&2; exit 1")
    target = tmp_path / "target"
    command = ["--root", str(root.path), work, UUID, str(target)]
    assert recover.main(command) == recover.DAMAGED
    said = "novadocker-recover: tar: ./log\\u202e: file changed as we read it\n"
    assert capsys.readouterr().err == said
    assert target.exists()


def test_any_number_of_changed_files_is_told(
    source: Path, tmp_path: Path, tar: Callable[[str], None]
) -> None:
    # The output exceeds a pipe's buffer before the archive has ended.
    tar("seq 100000 >&2; exit 1")
    assert len(copies.write_tar(source, tmp_path / "server.tar")) == 100000


@pytest.mark.parametrize("work", ["copy", "tar", "image", "mount", "verify"])
def test_a_server_without_its_volumes_is_not_told_as_whole(
    root: DataRoot, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    monkeypatch.setattr(mounts, "mount", lambda *_: None)
    metadata = root.path / "containers" / CONTAINER / "config.v2.json"
    metadata.write_text(json.dumps(STORED, separators=(",", ":"))[:-2])
    words = ["--root", str(root.path), work, UUID]

    def target(name: str) -> list[str]:
        return [] if work == "verify" else [str(tmp_path / name)]

    assert recover.main([*words, *target("one")]) == recover.DAMAGED
    named = ["--volume", f"/data={'f' * 64}"]
    assert recover.main([*words, *target("two"), *named]) == recover.OK


@pytest.mark.parametrize(
    "damage", [{"os": None}, {"architecture": 7}, {"config": ["x"]}, {"config": {"Labels": ["x"]}}]
)
def test_a_damaged_configuration_of_an_image(root: DataRoot, damage: dict[str, Any]) -> None:
    content = root.path / "image/overlay2/imagedb/content/sha256"
    content.mkdir(parents=True)
    good: dict[str, Any] = {"architecture": "arm64", "os": "linux", "config": {"Labels": None}}
    (content / ("e" * 64)).write_text(json.dumps(good))
    assert root.image_config(root.find(UUID)) == good
    (content / ("e" * 64)).write_text(json.dumps(good | damage))
    with pytest.raises(RecoveryError, match="is damaged"):
        root.image_config(root.find(UUID))


def test_a_folder_that_can_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken").mkdir()
    listdir = os.listdir

    def fail(directory: int) -> list[str]:
        if Path(f"/proc/self/fd/{directory}").readlink().name == "broken":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return listdir(directory)

    monkeypatch.setattr(os, "listdir", fail)
    assert list(verify.problems(tmp_path)) == ["/broken: Input/output error"]


def test_a_file_that_becomes_a_pipe_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("content")

    def swap() -> None:
        file.unlink()
        os.mkfifo(file)

    swapping.before_open(monkeypatch, "file", swap)
    assert list(verify.problems(tmp_path)) == ["/file: the file changed while it was read"]


def test_a_directory_that_becomes_a_link_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, outside = tmp_path / "source", tmp_path / "outside"
    (source / "x").mkdir(parents=True)
    (source / "x/mine").touch()
    outside.mkdir()
    (outside / "host").touch()

    def swap() -> None:
        (source / "x").rename(source / "y")
        (source / "x").symlink_to(outside)

    # The walk for the progress bar comes first, and would meet the attack.
    monkeypatch.setattr(progress, "used_bytes", lambda _source: 0)
    swapping.before_open(monkeypatch, "x", swap)
    (problem,) = verify.problems(source)
    assert problem.startswith("/x: ")


def test_directories_nested_deeper_than_python_recurses(tmp_path: Path) -> None:
    swapping.nest(tmp_path, 2000)
    assert list(verify.problems(tmp_path)) == []
    assert progress.used_bytes(tmp_path) == len("deep")
    swapping.remove(tmp_path)


def test_a_copy_follows_no_directory_that_becomes_a_link(
    tmp_path: Path,
) -> None:
    """GNU tar opens each name below a descriptor, and never through a link."""
    source, outside = tmp_path / "source", tmp_path / "outside"
    (source / "x").mkdir(parents=True)
    outside.mkdir()
    (outside / "shadow").write_text("the host's")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            (source / "x").rename(source / "y")
            (source / "x").symlink_to(outside)
            (source / "x").unlink()
            (source / "y").rename(source / "x")

    for number in range(300):
        (source / "x" / f"{number}").write_text("mine")
    (source / "x/shadow").write_text("mine")
    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for number in range(10):
            target = tmp_path / f"{number}.tar"
            with contextlib.suppress(RecoveryError):
                copies.write_tar(source, target)
            assert not target.exists() or b"the host's" not in target.read_bytes()
    finally:
        stop.set()
        swapper.join()


def test_nothing_stays_mounted_when_a_mount_fails(
    root: DataRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root.path / "volumes" / ("f" * 64) / "_data").mkdir(parents=True)
    target, changes = tmp_path / "target", tmp_path / "changes"
    target.mkdir()
    changes.mkdir()
    (changes / "volumes").write_text("no folder")
    commands: list[Sequence[str]] = []
    monkeypatch.setattr(mounts, "run", lambda *command, **_: commands.append(command))
    monkeypatch.setattr(mounts, "_folder_in", lambda target, _: contextlib.nullcontext(target))
    with pytest.raises(NotADirectoryError):
        mounts.mount(root, root.find(UUID), target, changes)
    assert [command[0] for command in commands] == ["mount", "umount"]


def test_the_configuration_of_an_image() -> None:
    image = {
        "architecture": "arm64",
        "variant": "v8",
        "os": "linux",
        "config": {"Env": ["A=1"], "Cmd": ["old"], "WorkingDir": "/srv"},
        "rootfs": {"diff_ids": ["sha256:1", "sha256:2"]},
    }
    labels = {naming.LABEL_UUID: UUID, "own": "kept"}
    found = copies.image_config(image, {"Cmd": ["new"], "Labels": labels, "Tty": True}, "sha256:3")
    assert found["config"] == {
        "Env": ["A=1"],
        "Cmd": ["new"],
        "WorkingDir": "/srv",
        "Labels": {"own": "kept"},
    }
    assert found["rootfs"]["diff_ids"] == ["sha256:3"]
    assert (found["architecture"], found["variant"]) == ("arm64", "v8")


# -- devicemapper ----------------------------------------------------------------------------------


def record(root: DataRoot, name: str, content: object) -> Path:
    folder = root.path / "devicemapper" / "metadata"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder / name


def test_a_thin_device_is_the_recorded_one(root: DataRoot) -> None:
    record(root, LAYER, {"device_id": 7, "size": 1 << 20, "transaction_id": 9})
    assert thin.read_device(root, LAYER) == thin.ThinDevice(number=7, sectors=2048)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"size": 512}, "has no device number"),
        ({"device_id": "7 1 1", "size": 512}, "has no device number"),
        ({"device_id": 1 << 24, "size": 512}, "has no device number"),
        ({"device_id": 7, "size": "1; reboot"}, "has no size"),
        ({"device_id": 7, "size": -512}, "has no size"),
        ([7], "not a JSON object"),
    ],
)
def test_a_forged_record_of_a_thin_device(root: DataRoot, content: object, text: str) -> None:
    record(root, LAYER, content)
    with pytest.raises(RecoveryError, match=text):
        thin.read_device(root, LAYER)


def test_devices_that_may_be_a_lost_one(root: DataRoot) -> None:
    record(root, "deviceset-metadata", {"next_device_id": 1})
    record(root, "base", {"device_id": 1, "size": 1024})
    record(root, "other", {"device_id": 3, "size": 2048})
    damaged = record(root, LAYER, {})
    damaged.write_text('{"dev')
    found = list(thin.unnamed_devices(root))
    assert [device.number for device in found[:4]] == [0, 2, 4, 5]
    assert {device.sectors for device in found} == {4}
    for path in damaged.parent.iterdir():
        path.write_text("")
    with pytest.raises(RecoveryError, match="all devices are damaged"):
        list(thin.unnamed_devices(root))


def test_the_blocks_of_a_pool() -> None:
    superblock = bytearray(4096)
    superblock[32:40] = (27022010).to_bytes(8, "little")
    superblock[336:340] = (128).to_bytes(4, "little")
    assert thin.block_sectors(bytes(superblock)) == 128
    with pytest.raises(RecoveryError, match="is truncated"):
        thin.block_sectors(bytes(superblock[:100]))
    superblock[32] = 0
    with pytest.raises(RecoveryError, match="is damaged"):
        thin.block_sectors(bytes(superblock))


def test_a_pool_that_is_nowhere(root: DataRoot) -> None:
    record(root, LAYER, {"device_id": 7, "size": 512})
    with pytest.raises(RecoveryError, match="--thin-pool"), thin.opened(root, LAYER):
        pass


def test_a_bar_shows_the_share_of_long_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    bar = progress.Bar(4_000_000, "copying")
    bar.add(1_000_000)
    bar.add(1_000_000)
    assert capsys.readouterr().err == f"\rcopying [{'#' * 7:30}]  25% 1 MB"
    now[0] += 1
    # an archive is larger than the files in it
    bar.add(3_000_000)
    assert capsys.readouterr().err == f"\rcopying [{'#' * 30}] 100% 5 MB"
    bar.end()
    assert capsys.readouterr().err.rstrip(" \n") == "\rcopying: 5 MB"


def test_no_bar_is_shown_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.shown([b"a", b"b"], progress.Bar(2, "copying"))) == [b"a", b"b"]
    assert capsys.readouterr().err == ""
