# SPDX-License-Identifier: Apache-2.0
"""Servers read from the data root of an engine that was killed."""

import json
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest

from novadocker import naming
from novadocker.cmd import recover
from tests.engine.busybox import busybox_archive
from tests.engine.engines import THIN_OPTIONS, own_engine, why_no_devicemapper

UUID = "3f1c7f0e-5a39-4b44-9a0e-1de0a97c1b55"
SPARSE_BYTES = 64 << 20
SCRIPT = f"""
echo changed > /etc/motd; rm /gone; rm -r /folder; mkdir /folder; echo new > /folder/new
echo twice > /root/first; ln /root/first /root/second; chown 1000:1001 /root/first
truncate -s {SPARSE_BYTES} /root/sparse; mknod /root/null c 1 3; chmod 4755 /bin/busybox
echo precious > /data/kept; echo ready
exec sleep 1d
"""


@dataclass(frozen=True)
class Dead:
    """A dead engine's data root with one server in it."""

    root: Path
    container: str
    driver: str

    def run(self, *words: str | Path) -> int:
        return recover.main(["--root", str(self.root), *map(str, words)])


@pytest.fixture(
    scope="module", params=["overlay2", "vfs", "btrfs", "devicemapper", "devicemapper-off"]
)
def dead(request: pytest.FixtureRequest, own_network: None, state_folder: Path) -> Iterator[Dead]:
    """Yield the data root of a killed engine; with ``-off`` the thin pool is inactive too."""
    driver, _, off = request.param.partition("-")
    if driver == "btrfs" and "btrfs" not in Path("/proc/filesystems").read_text():
        pytest.skip("this machine has no btrfs")
    if driver == "devicemapper" and (reason := why_no_devicemapper()):
        pytest.skip(reason)
    with own_engine(
        state_folder / f"dead-{request.param}",
        driver,
        "btrfs" if driver == "btrfs" else "",
        (*THIN_OPTIONS, f"dm.fs={'xfs' if off else 'ext4'}") if driver == "devicemapper" else (),
    ) as engine:
        client = docker.APIClient(base_url=engine.url, timeout=60)
        container = make_server(client)
        if off:
            engine.lose_power()
            remove_thin_devices()
        else:
            engine.kill()
        before = everything_in(engine.data_root)
        yield Dead(engine.data_root, container, driver)
        if off or driver != "devicemapper":
            assert everything_in(engine.data_root) == before
        if off:
            engine.start_all()
        else:
            engine.start()
        client.remove_container(container, force=True, v=True)
        client.close()
    assert devices_of_ours() == ""


def remove_thin_devices() -> None:
    """Remove the engine's thin devices, then their pool, as a power-off of the host does."""
    shown = subprocess.run(["dmsetup", "ls"], check=True, capture_output=True, text=True).stdout
    names = [line.split()[0] for line in shown.splitlines() if line.startswith("docker-")]
    for name in sorted(names, key=lambda name: name.endswith("-pool")):
        subprocess.run(["dmsetup", "remove", "--retry", name], check=True)


def devices_of_ours() -> str:
    """Return the output of dmsetup and losetup for temporary devices."""
    shown = ""
    for command in (["dmsetup", "ls"], ["losetup", "--list", "--noheadings"]):
        if Path("/dev/mapper/control").exists() or command[0] == "losetup":
            shown += subprocess.run(command, check=True, capture_output=True, text=True).stdout
    marks = ("novadocker-recover-", "novadocker-thin-")
    return "\n".join(line for line in shown.splitlines() if any(mark in line for mark in marks))


def make_server(client: docker.APIClient) -> str:
    """Create a server whose image has two layers, deleted files and a volume behind a link."""
    client.import_image_from_data(busybox_archive(), repository="base", tag="test")
    base = client.create_container(
        "base:test",
        ["sh", "-c", "touch /gone; mkdir -p /folder/old /srv/real; ln -s /srv/real /data"],
        network_disabled=True,
    )
    client.start(base)
    client.wait(base, timeout=60)
    client.commit(base, "image", "test", changes=["VOLUME /data", "ENV KEPT=yes"])
    client.remove_container(base)
    container = client.create_container(
        "image:test",
        ["sh", "-c", SCRIPT],
        labels={
            naming.LABEL_SCHEMA: naming.SCHEMA,
            naming.LABEL_UUID: UUID,
            naming.LABEL_NAME: "i1",
            naming.LABEL_FLAVOR: "small",
        },
        name=naming.container_name(UUID),
        network_disabled=True,
        tty=True,
    )["Id"]
    client.start(container)
    said = b""
    for chunk in client.logs(container, stream=True, follow=True):
        said += chunk
        if b"ready" in said:
            break
    root = Path(f"/proc/{client.inspect_container(container)['State']['Pid']}/root")
    os.setxattr(root / "etc" / "motd", "user.note", b"kept")
    return str(container)


def everything_in(root: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in root.rglob("*")
        # The running container writes to this log itself.
        if not path.name.endswith("-json.log")
    }


def check_tree(tree: Path) -> None:
    assert (tree / "etc/motd").read_text() == "changed\n"
    assert os.getxattr(tree / "etc/motd", "user.note") == b"kept"
    assert not (tree / "gone").exists()
    assert os.listdir(tree / "folder") == ["new"]
    first = (tree / "root/first").stat()
    assert first.st_ino == (tree / "root/second").stat().st_ino
    assert (first.st_uid, first.st_gid) == (1000, 1001)
    sparse = (tree / "root/sparse").stat()
    assert (sparse.st_size, sparse.st_blocks) == (SPARSE_BYTES, 0)
    assert (tree / "root/null").stat().st_rdev == os.makedev(1, 3)
    assert (tree / "bin/busybox").stat().st_mode & stat.S_ISUID
    assert (tree / "srv/real/kept").read_text() == "precious\n"


def test_list(dead: Dead, capsys: pytest.CaptureFixture[str]) -> None:
    assert dead.run("--json", "list") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["uuid"], row["name"], row["container"]) == (UUID, "i1", dead.container)
    assert (row["driver"], row["volumes"], row["damage"]) == (dead.driver, ["/data"], "")
    assert (row["flavor"], row["own"], row["image"][:7]) == ("small", True, "sha256:")


def test_a_copy_has_everything_and_differences_are_found(
    dead: Dead, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    assert dead.run("copy", UUID, copy) == 0
    check_tree(copy)
    assert dead.run("verify", UUID, "--against", copy) == 0
    assert dead.run("copy", UUID, copy) == 1
    assert "is not empty" in capsys.readouterr().err
    (copy / "srv/real/kept").write_text("Precious\n")
    (copy / "root/null").unlink()
    (copy / "added").touch()
    assert dead.run("verify", "i1", "--against", copy) == 3
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "/added: only in the copy",
        "/root/null: the copy can't be read: No such file or directory",
        "/srv/real/kept: the copy differs in content",
    ]


def test_a_tar_archive(dead: Dead, tmp_path: Path) -> None:
    assert dead.run("tar", UUID, tmp_path / "server.tar") == 0
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(
        [
            "tar",
            "-x",
            "--xattrs",
            "--xattrs-include=*",
            "-C",
            unpacked,
            "-f",
            tmp_path / "server.tar",
        ],
        check=True,
    )
    check_tree(unpacked)
    assert dead.run("tar", UUID, tmp_path / "server.tar") == 1


def test_an_image_boots_elsewhere(
    dead: Dead, tmp_path: Path, docker_client: docker.APIClient
) -> None:
    archive = tmp_path / "server.docker"
    assert dead.run("image", UUID, archive) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["server.docker"]
    with archive.open("rb") as source:
        (loaded,) = (line for line in docker_client.load_image(source) if "stream" in line)
    image = loaded["stream"].split("Loaded image ID: ")[1].strip()
    config = docker_client.inspect_image(image)["Config"]
    assert "KEPT=yes" in config["Env"]
    assert not any(name.startswith("org.openstack") for name in config["Labels"] or {})
    container = docker_client.create_container(
        image,
        ["sh", "-c", "cat /etc/motd /data/kept; stat -c %h /root/first"],
        network_disabled=True,
    )
    docker_client.start(container)
    assert docker_client.wait(container, timeout=60)["StatusCode"] == 0
    assert docker_client.logs(container).split() == [b"changed", b"precious", b"2"]
    docker_client.remove_container(container, v=True)
    docker_client.remove_image(image)


def test_a_mount_takes_changes_elsewhere(dead: Dead, tmp_path: Path) -> None:
    target, changes = tmp_path / "server", tmp_path / "changes"
    target.mkdir()
    assert dead.run("mount", UUID, target) == 0
    check_tree(target)
    with pytest.raises(OSError, match="Read-only"):
        (target / "srv/real/kept").write_text("lost\n")
    with pytest.raises(OSError, match="Read-only"):
        (target / "new").touch()
    assert dead.run("umount", target) == 0
    assert dead.run("mount", UUID, target, "--changes", changes) == 0
    (target / "srv/real/kept").write_text("mended\n")
    (target / "etc/motd").write_text("mended\n")
    assert dead.run("umount", target) == 0
    assert dead.run("mount", UUID, target) == 0
    check_tree(target)
    assert dead.run("umount", target) == 0
    assert not any(target.iterdir())


@pytest.mark.parametrize("dead", ["overlay2"], indirect=True)
def test_a_read_only_data_root_that_is_mounted_elsewhere(dead: Dead, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run(["mount", "--bind", dead.root, elsewhere], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", elsewhere], check=True)
        moved = Dead(elsewhere, dead.container, dead.driver)
        assert moved.run("copy", UUID, tmp_path / "copy") == 0
        check_tree(tmp_path / "copy")
    finally:
        subprocess.run(["umount", elsewhere], check=True)


@pytest.mark.parametrize("dead", ["vfs"], indirect=True)
def test_the_owners_of_an_engine_that_remaps_users(dead: Dead, tmp_path: Path) -> None:
    # Such an engine's data root has this name; the server's root is the owner of one of its files.
    remapped = tmp_path / "1000.1001"
    remapped.symlink_to(dead.root)
    archive = tmp_path / "server.docker"
    assert Dead(remapped, dead.container, dead.driver).run("image", UUID, archive) == 0
    with tarfile.open(archive) as outer:
        (name,) = (name for name in outer.getnames() if name.endswith("layer.tar"))
        with tarfile.open(fileobj=outer.extractfile(name)) as layer:
            owners = {entry.name: (entry.uid, entry.gid) for entry in layer}
    assert owners["./root/first"] == (0, 0)


@pytest.mark.parametrize("damage", ["cut", "lost"])
def test_damaged_metadata(
    dead: Dead, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for entry in dead.root.iterdir():
        if entry.name != "containers":
            (root / entry.name).symlink_to(entry)
    shutil.copytree(dead.root / "containers", root / "containers")
    metadata = root / "containers" / dead.container / "config.v2.json"
    if damage == "cut":
        text = metadata.read_text()
        metadata.write_text(text[: text.index(UUID) + len(UUID) + 2])
    else:
        metadata.unlink()
    damaged = Dead(root, dead.container, dead.driver)
    assert damaged.run("list") == 3
    assert (UUID in capsys.readouterr().out) == (damage == "cut")
    assert damaged.run("copy", dead.container[:12], tmp_path / "copy") == 3
    assert "volumes are unknown" in capsys.readouterr().err
    assert (tmp_path / "copy/etc/motd").read_text() == "changed\n"
    assert damaged.run("--json", "list") == 3
    (row,) = json.loads(capsys.readouterr().out)
    # Other tests' volumes may be in the engine, so select this server's.
    names = [
        name
        for name in row["unclaimed_volumes"]
        if (dead.root / "volumes" / name / "_data/kept").exists()
    ]
    assert len(names) == 1
    words = ("copy", dead.container[:12], tmp_path / "whole", "--volume", f"/data={names[0]}")
    assert damaged.run(*words) == 0
    check_tree(tmp_path / "whole")


@pytest.mark.parametrize("dead", ["devicemapper-off"], indirect=True)
def test_a_lost_record_of_a_thin_device(dead: Dead, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(dead.root / "devicemapper/metadata", root / "devicemapper/metadata")
    (root / "devicemapper/devicemapper").symlink_to(dead.root / "devicemapper/devicemapper")
    for entry in dead.root.iterdir():
        if entry.name != "devicemapper":
            (root / entry.name).symlink_to(entry)
    layers = dead.root / "image/devicemapper/layerdb/mounts" / dead.container
    record = root / "devicemapper/metadata" / (layers / "mount-id").read_text()
    record.write_text(record.read_text()[:10])
    assert Dead(root, dead.container, dead.driver).run("copy", UUID, tmp_path / "copy") == 0
    check_tree(tmp_path / "copy")


def test_what_is_no_data_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recover.main(["--root", str(tmp_path), "list"]) == 1
    assert "is not a data root" in capsys.readouterr().err
