# SPDX-License-Identifier: Apache-2.0
"""The config drive, as a container and cloud-init see it."""

import hashlib
import os
import subprocess
from pathlib import Path

import docker
import pytest

from novadocker.privsep.guest import config_drive, runtime
from novadocker.privsep.network import namespace
from novadocker.virt.docker.guest import config_drive as guest_config_drive
from tests.engine.guest.test_identity import Build, Guest, build

__all__ = ["build"]

HOST = "test-host"
FILES = {"openstack/latest/user_data": bytes(range(256)) * 256, "openstack/content/0000": b"x"}


@pytest.fixture
def guest(build: Build, docker_client: docker.APIClient, instance_uuid: str) -> Guest:
    config_drive.write_drive(HOST, instance_uuid, FILES)
    namespace.wire_nics(instance_uuid, [])
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


def loops(uuid: str) -> list[str]:
    """Return the loop devices of an instance."""
    return [
        f"/dev/{file.parent.parent.name}"
        for file in Path("/sys/block").glob("loop*/loop/backing_file")
        if uuid in file.read_text()
    ]


def test_a_labelled_device(
    build: Build, docker_client: docker.APIClient, instance_uuid: str, tmp_path: Path
) -> None:
    (tmp_path / "files/openstack/latest").mkdir(parents=True)
    (tmp_path / "files/openstack/latest/meta_data.json").write_text("{}")
    # Nova calls genisoimage with these options.
    command = ["genisoimage", "-quiet", "-J", "-r", "-V", "config-2", "-o"]
    subprocess.run([*command, tmp_path / "iso", tmp_path / "files"], check=True)
    image = (tmp_path / "iso").read_bytes()
    config_drive.write_drive(HOST, instance_uuid, FILES, (0, 0), image)
    namespace.wire_nics(instance_uuid, [])
    device = f"{config_drive.device_link(instance_uuid)}:{guest_config_drive.DEVICE}:r"
    try:
        guest = Guest(docker_client, build(), instance_uuid, devices=[device])
        for _ in range(2):
            config_drive.attach_device(HOST, instance_uuid)
            config_drive.attach_device(HOST, instance_uuid)
            assert len(loops(instance_uuid)) == 1
            runtime.bind_container(guest.id, instance_uuid)
            guest.start()
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
            assert loops(instance_uuid) == []
    finally:
        config_drive.detach_device(HOST, instance_uuid)
        config_drive.delete_drive(HOST, instance_uuid)
        runtime.delete_namespace(instance_uuid)
    with pytest.raises(FileNotFoundError):
        config_drive.attach_device(HOST, instance_uuid)
    assert not Path(config_drive.device_link(instance_uuid)).is_symlink()
    os.rmdir(config_drive.FOLDER / HOST)
