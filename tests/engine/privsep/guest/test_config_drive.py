# SPDX-License-Identifier: Apache-2.0
"""The config drive, as a container and cloud-init see it."""

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from novadocker.linux import loop
from novadocker.privsep.guest import config_drive, runtime
from novadocker.privsep.network import namespace
from novadocker.virt.docker.guest import config_drive as guest_config_drive
from tests.engine import loop_devices
from tests.engine.guest.test_identity import Build, Guest, build

__all__ = ["build"]

HOST = "test-host"
FILES = {"openstack/latest/user_data": bytes(range(256)) * 256, "openstack/content/0000": b"x"}


Connect = Callable[[str], None]


@pytest.fixture
def connect(request: pytest.FixtureRequest) -> Connect:
    """Return a function that creates an instance's namespaces, by default with the host's ids."""
    if getattr(request, "param", "host") == "host":
        return lambda uuid: namespace.wire_nics(uuid, []) and None
    return lambda uuid: runtime.create_own_namespace(uuid, 1_900_216_320, 4 * 65536)


ALL_IDS = pytest.mark.parametrize("connect", ["host", "own"], indirect=True)


@pytest.fixture
def guest(
    build: Build, docker_client: docker.APIClient, instance_uuid: str, connect: Connect
) -> Guest:
    config_drive.write_drive(HOST, instance_uuid, FILES)
    assert config_drive.list_drives(HOST) == [instance_uuid]
    connect(instance_uuid)
    mounts = [
        docker.types.Mount(mount.target, mount.source, type="bind", read_only=True)
        for mount in guest_config_drive.mounts(config_drive.files_folder(HOST, instance_uuid))
    ]
    found = Guest(docker_client, build(), instance_uuid, mounts=mounts)
    runtime.bind_container(found.id, instance_uuid)
    found.start()
    yield found
    runtime.delete_namespace(instance_uuid)
    config_drive.delete_drive(HOST, instance_uuid)
    config_drive.delete_drive(HOST, instance_uuid)
    assert not Path(config_drive.files_folder(HOST, instance_uuid)).parent.exists()
    os.rmdir(config_drive.FOLDER / HOST)
    assert config_drive.list_drives(HOST) == []


@ALL_IDS
@pytest.mark.parametrize("folder", ["/config-2", "/var/lib/cloud/seed/config_drive"])
def test_drive_is_there_and_read_only(guest: Guest, folder: str) -> None:
    path = f"{folder}/openstack/latest/user_data"
    assert guest.run("stat", "-c", "%a %u %s", path) == "400 0 65536\n"
    assert guest.run("cmp", path, "/config-2/openstack/latest/user_data") == ""
    assert "Read-only" in guest.run("sh", "-c", f"echo x >{path}")
    assert "Read-only" in guest.run("rm", path)
    guest.client.restart(guest.id, timeout=0)
    assert guest.run("stat", "-c", "%s", path) == "65536\n"


def test_a_snapshot_does_not_have_it(guest: Guest, docker_client: docker.APIClient) -> None:
    image = docker_client.commit(guest.id)["Id"]
    try:
        other = docker_client.create_container(image, ["ls", "-A", "/config-2"])["Id"]
        archive, _ = docker_client.get_archive(other, "/config-2")
        assert b"user_data" not in b"".join(archive)
    finally:
        docker_client.remove_container(other)
        docker_client.remove_image(image)


def test_drive_is_replaced_as_a_whole(guest: Guest) -> None:
    config_drive.write_drive(HOST, guest.uuid, {"openstack/a": b"1"})
    folder = Path(config_drive.files_folder(HOST, guest.uuid))
    assert [str(path.relative_to(folder)) for path in folder.rglob("*")] == [
        "openstack",
        "openstack/a",
    ]
    assert folder.parent.parent.stat().st_mode & 0o777 == 0o700
    assert len(os.listdir(folder.parent.parent)) == 1


def loops(uuid: str) -> set[Path]:
    """Return the attached loop devices of an instance."""
    found = set()
    for entry in Path("/sys/block").glob("loop*/loop"):
        path = Path("/dev", entry.parent.name)
        device = os.open(path, os.O_RDONLY)
        status = loop.status(device)
        os.close(device)
        if status is not None and status.name == uuid:
            found.add(path)
    return found


def image_of(folder: Path, text: str) -> bytes:
    """Return the image of a config drive with one file, as Nova builds it."""
    (folder / "files/openstack/latest").mkdir(parents=True, exist_ok=True)
    (folder / "files/openstack/latest/meta_data.json").write_text(text)
    command = ["genisoimage", "-quiet", "-J", "-r", "-V", "config-2", "-o"]
    subprocess.run([*command, folder / "iso", folder / "files"], check=True)
    return (folder / "iso").read_bytes()


@pytest.fixture
def with_device(
    build: Build, docker_client: docker.APIClient, tmp_path: Path, connect: Connect
) -> Iterator[Callable[[str, str], Guest]]:
    """Yield a function that starts a server with a config drive, which contains a text."""
    made = []

    def call(uuid: str, text: str) -> Guest:
        made.append(uuid)
        config_drive.write_drive(HOST, uuid, FILES, (0, 0), image_of(tmp_path, text))
        connect(uuid)
        device = f"{config_drive.device_link(uuid)}:{guest_config_drive.DEVICE}:r"
        guest = Guest(docker_client, build(), uuid, devices=[device])
        config_drive.attach_device(HOST, uuid)
        runtime.bind_container(guest.id, uuid)
        guest.start()
        return guest

    yield call
    for uuid in made:
        for container in docker_client.containers(filters={"status": "running"}):
            docker_client.kill(container["Id"])
        config_drive.detach_device(HOST, uuid)
        config_drive.delete_drive(HOST, uuid)
        runtime.delete_namespace(uuid)
        assert loops(uuid) == set()
        assert list(config_drive.LINKS.glob(f"{uuid}*")) == []
    os.rmdir(config_drive.FOLDER / HOST)


WithDevice = Callable[[str, str], Guest]


@ALL_IDS
def test_a_labelled_device(with_device: WithDevice, instance_uuid: str, tmp_path: Path) -> None:
    guest = with_device(instance_uuid, "{}")
    image = (tmp_path / "iso").read_bytes()
    for _ in range(2):
        attached = loops(instance_uuid)
        assert len(attached) == 2
        config_drive.attach_device(HOST, instance_uuid)
        assert loops(instance_uuid) == attached
        node = f"/proc/{guest.pid}/root{guest_config_drive.DEVICE}"
        shown = subprocess.run(["blkid", "-p", node], capture_output=True, text=True).stdout
        assert 'LABEL="config-2"' in shown
        assert 'TYPE="iso9660"' in shown
        read = guest.run("sh", "-c", f"md5sum <{guest_config_drive.DEVICE}").split()[0]
        assert read == hashlib.md5(image, usedforsecurity=False).hexdigest()
        refused = guest.run("sh", "-c", f"echo x >{guest_config_drive.DEVICE}")
        assert "not permitted" in refused or "Read-only" in refused
        guest.client.stop(guest.id, timeout=0)
        config_drive.detach_device(HOST, instance_uuid)
        config_drive.detach_device(HOST, instance_uuid)
        assert loops(instance_uuid) == set()
        config_drive.attach_device(HOST, instance_uuid)
        guest.start()


def test_a_device_without_an_image(instance_uuid: str) -> None:
    with pytest.raises(FileNotFoundError):
        config_drive.attach_device(HOST, instance_uuid)
    assert not Path(config_drive.device_link(instance_uuid)).is_symlink()
    assert loops(instance_uuid) == set()


@ALL_IDS
def test_a_detached_device_is_not_given_to_another_server(
    with_device: WithDevice, new_instance_uuid: Callable[[], str]
) -> None:
    """A tenant detaches its device, and the next server gets a device of another number."""
    first = with_device(new_instance_uuid(), "of the first server")
    # busybox sends LOOP_CLR_FD to a file descriptor that it opened for reading.
    for _ in range(3):
        first.run("losetup", "-d", guest_config_drive.DEVICE)
    second = with_device(new_instance_uuid(), "of the second server")
    node = ("stat", "-L", "-c", "%t:%T", guest_config_drive.DEVICE)
    assert first.run(*node) != second.run(*node)
    read = ("grep", "-a", "-o", "of the [a-z]* server", guest_config_drive.DEVICE)
    assert first.run(*read) == "of the first server\n"
    assert second.run(*read) == "of the second server\n"


def test_no_path_of_the_host_is_readable(
    with_device: WithDevice, new_instance_uuid: Callable[[], str]
) -> None:
    first = with_device(new_instance_uuid(), "")
    second = with_device(new_instance_uuid(), "")
    shown = first.run("losetup", guest_config_drive.DEVICE)
    shown += first.run("sh", "-c", "cat /sys/block/loop*/loop/backing_file")
    assert first.uuid in shown
    for word in (HOST, str(config_drive.FOLDER), second.uuid):
        assert word not in shown


def test_a_holder_that_an_administrator_detached(
    with_device: WithDevice, instance_uuid: str
) -> None:
    guest = with_device(instance_uuid, "")
    guest.client.stop(guest.id, timeout=0)
    subprocess.run(["losetup", "-d", os.readlink(config_drive._holder_link(instance_uuid))])
    # Another program gets the number.
    with loop_devices.device(Path("/usr/lib/os-release")) as other:
        config_drive.detach_device(HOST, instance_uuid)
        shown = Path("/sys/block", Path(other).name, "loop/backing_file").read_text()
        assert shown == "/usr/lib/os-release\n"
        config_drive.attach_device(HOST, instance_uuid)
        guest.start()
        assert guest.run("head", "-c", "0", guest_config_drive.DEVICE) == ""
