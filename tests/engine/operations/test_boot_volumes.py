# SPDX-License-Identifier: Apache-2.0
"""Servers of a real engine that boot from volumes: ext4 on loop devices."""

import hashlib
import io
import os
import subprocess
import tarfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from docker.errors import APIError, ImageNotFound
from nova import conf, objects
from nova import exception as nova_exception

from novadocker import exception
from novadocker.privsep.guest import volume_devices
from tests.engine import loop_devices
from tests.engine.hosts import ComputeHost
from tests.engine.loop_devices import is_claimed, mounts_of
from tests.engine.operations.test_volumes import shell
from tests.engine.servers import IMAGE
from tests.waiting import until

MIB = 1 << 20
SIZE = 160 * MIB
EMPTY = "novadocker/00000000-0000-0000-0000-000000000000:empty"

NewVolume = Callable[[], str]


@pytest.fixture
def new_volume(tmp_path: Path) -> Iterator[NewVolume]:
    """Yield a function that returns a new device."""
    with ExitStack() as undo:

        def create() -> str:
            return undo.enter_context(loop_devices.volume(tmp_path / f"v{uuid.uuid4()}", SIZE))

        yield create


@contextmanager
def mounted(device: str, place: Path) -> Iterator[Path]:
    """Mount the file system of a device on the host."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "ext4", device, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@contextmanager
def forbidden() -> Iterator[None]:
    """Let no server boot from a volume."""
    before = conf.CONF.docker.volume_modes
    conf.CONF.set_override("volume_modes", ["raw"], group="docker")
    try:
        yield
    finally:
        conf.CONF.set_override("volume_modes", before, group="docker")


def label(device: str) -> str:
    return subprocess.run(
        ["e2label", device], check=True, capture_output=True, text=True
    ).stdout.strip()


def tail(device: str) -> bytes:
    with open(device, "rb") as file:
        file.seek(-4096, os.SEEK_END)
        return file.read()


@pytest.mark.parametrize("flavor", ["small", "host"])
def test_the_life_of_a_server_on_a_volume(
    compute_host: ComputeHost, new_volume: NewVolume, tmp_path: Path, flavor: str
) -> None:
    host, device, more = compute_host, new_volume(), new_volume()
    nova = host.start_nova()
    server = nova.spawn(replace(host.new_server(flavor, (1,)), root=device, volumes=(more,)))
    try:
        assert label(device) == "nova-root"
        assert tail(device) == bytes(4096)
        # One mount, in the container's namespace.
        assert len(mounts_of(device)) == 1
        line = shell(host, server, "grep ' / / ' /proc/self/mountinfo")
        assert "ext4" in line
        assert "errors=remount-ro" in line
        assert shell(host, server, "stat -c %u:%g /bin/busybox /etc/hostname") == "0:0\n0:0\n"
        assert shell(host, server, "cat /etc/hostname") == "web-1\n"
        # No node of the root's device, which would let the tenant change a mounted file system.
        assert "No such file" in shell(host, server, "ls /dev/vda")
        assert "vda" not in shell(host, server, "ls /sys/block; ls -l /dev/disk/by-id")
        assert shell(host, server, "ls /sys/block") == "vdb\n"
        # The image's volume is part of the root, so that its data is on the volume, too.
        assert shell(host, server, "grep -c ' /data ' /proc/self/mountinfo") == "0\n"
        assert shell(host, server, "echo kept >/root-file; echo kept >/data/file; sync") == ""

        def still_there(begin: str) -> None:
            found = shell(host, server, "cat /root-file /data/file")
            assert found == "kept\nkept\n", begin
            assert len(mounts_of(device)) == 1, begin

        host.client.restart(server.name, timeout=0)
        still_there("a restart behind Nova's back")
        nova.reboot(server)
        still_there("hard reboot")
        nova.reboot(server, "SOFT")
        still_there("soft reboot")
        nova.power_off(server)
        until(lambda: not is_claimed(device))
        assert mounts_of(device) == []
        nova.power_on(server)
        still_there("start")
        if flavor == "small":
            server = nova.resize(server, "large")
            still_there("resize")
            server = nova.confirm_resize(server)
        # As in a shelve and an unshelve: the container is new, the files are not.
        nova.destroy(server)
        assert mounts_of(device) == []
        assert not is_claimed(device)
        server = nova.spawn(server)
        still_there("unshelve")
        # As after a reboot of the host.
        nova.power_off(server)
        volume_devices.forget(server.uuid)
        nova.stop()
        nova = host.start_nova([server])
        nova.power_on(server)
        still_there("reboot of the host")
    finally:
        nova.destroy(server)
        nova.stop()
    host.survey.check_nothing_else([])
    assert mounts_of(device) == []
    assert not volume_devices.held(server.uuid)
    with mounted(device, tmp_path / "m") as root:
        assert (root / "root-file").read_text() == "kept\n"
        assert (root / "root-file").stat().st_uid == 0


def test_the_files_in_etc_follow_the_ports_of_a_server_on_a_volume(
    compute_host: ComputeHost, new_volume: NewVolume
) -> None:
    host, device = compute_host, new_volume()
    nova = host.start_nova()
    server = nova.spawn(replace(host.new_server("small", (1,)), root=device))
    try:
        assert "10.7.0.1" in shell(host, server, "cat /etc/hosts")
        server = nova.detach(server, 1)
        assert "10.7.0.1" not in shell(host, server, "cat /etc/hosts")
        server = nova.attach(server, 2)
        assert "10.7.0.2" in shell(host, server, "cat /etc/hosts")
        nova.power_off(server)
        server = nova.detach(server, 2)
        nova.power_on(server)
        # Nothing is mounted while the server is stopped.
        assert "10.7.0.2" in shell(host, server, "cat /etc/hosts")
    finally:
        nova.destroy(server)
        nova.stop()


def test_the_engine_dies_under_a_server_on_a_volume(
    compute_host: ComputeHost, new_volume: NewVolume
) -> None:
    host, device = compute_host, new_volume()
    nova = host.start_nova()
    server = nova.spawn(replace(host.new_server("small", (1,)), root=device))
    try:
        shell(host, server, "echo kept >/file; sync")
        host.engine.kill()
        assert len(mounts_of(device)) == 1
        host.engine.start()
        assert shell(host, server, "cat /file") == "kept\n"
        assert len(mounts_of(device)) == 1
    finally:
        nova.destroy(server)
        nova.stop()
    assert mounts_of(device) == []
    assert not is_claimed(device)


def test_a_volume_with_the_bytes_of_its_image_is_filled_once(
    compute_host: ComputeHost, new_volume: NewVolume
) -> None:
    host, device = compute_host, new_volume()
    with io.BytesIO() as archive:
        with tarfile.open(fileobj=archive, mode="w") as tar:
            member = tarfile.TarInfo("manifest.json")
            member.size = 3 * MIB
            tar.addfile(member, io.BytesIO(os.urandom(member.size)))
        content = archive.getvalue()
    with open(device, "r+b") as file:
        file.write(content)
    nova = host.start_nova()
    described = {**IMAGE, "size": len(content)}
    nova.volume_image = objects.ImageMeta.from_dict(described)
    server = replace(host.new_server("small", (1,)), root=device)
    try:
        # Glance's checksum is not that of what is on the volume.
        with pytest.raises(exception.RequestRefused, match="nothing on it was changed"):
            nova.spawn(server)
        assert Path(device).read_bytes()[: len(content)] == content
        assert not volume_devices.held(server.uuid)
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        host.client.tag(
            f"novadocker/{IMAGE['id']}:{'0' * 12}", f"novadocker/{IMAGE['id']}", digest[:12]
        )
        nova.volume_image = objects.ImageMeta.from_dict({**described, "checksum": digest})
        server = nova.spawn(server)
        shell(host, server, "echo mine >/file")
        nova.destroy(server)
        server = nova.spawn(server)
        assert shell(host, server, "cat /file") == "mine\n"
    finally:
        nova.destroy(server)
        nova.stop()
        host.client.remove_image(f"novadocker/{IMAGE['id']}:{digest[:12]}")


def test_a_file_system_that_is_an_image_grows_to_its_volume(
    compute_host: ComputeHost, new_volume: NewVolume, tmp_path: Path
) -> None:
    host, device = compute_host, new_volume()
    small = str(40 * MIB // 4096)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", device, small], check=True)
    container = host.client.create_container(f"novadocker/{IMAGE['id']}:{'0' * 12}", "true")["Id"]
    with mounted(device, tmp_path / "m") as root:
        exported = b"".join(host.client.export(container))
        subprocess.run(["tar", "-x", "-C", root], input=exported, check=True)
        init = root / "sbin/init"
        init.parent.mkdir(exist_ok=True)
        init.unlink(missing_ok=True)
        init.write_text("#!/bin/sh\ntrap 'exit 0' TERM\nsleep 1d & wait\n")
        init.chmod(0o755)
    host.client.remove_container(container, v=True)
    nova = host.start_nova()
    nova.volume_image = None
    server = nova.spawn(replace(host.new_server("small", (1,)), root=device))
    try:
        assert shell(host, server, "cat /proc/1/cmdline | tr '\\0' ' '") == "/bin/sh /sbin/init "
        blocks = int(shell(host, server, "stat -f -c %b /"))
        assert blocks * 4096 > 130 * MIB
    finally:
        nova.destroy(server)
        nova.stop()
        host.client.remove_image(EMPTY)


def test_what_is_no_root_directory_is_refused_and_unchanged(
    compute_host: ComputeHost, new_volume: NewVolume
) -> None:
    host, device = compute_host, new_volume()
    nova = host.start_nova()
    server = replace(host.new_server("small", (1,)), root=device)

    def refused(words: str) -> None:
        before = Path(device).read_bytes()
        with pytest.raises(exception.RequestRefused, match=words):
            nova.spawn(server)
        assert Path(device).read_bytes() == before
        assert not volume_devices.held(server.uuid)
        # The image for volumes without an image stays in the engine's cache.
        with suppress(ImageNotFound):
            host.client.remove_image(EMPTY)
        host.survey.check_nothing_else([])

    try:
        with open(device, "r+b") as file:
            file.seek(SIZE - 8 * MIB)
            file.write(b"the end of a data base")
        refused("neither an ext4 file system nor its image")
        options = ["-q", "-F", "-b", "4096"]
        subprocess.run(["mkfs.ext4", *options, "-O", "journal_dev", device], check=True)
        refused("a file system that was not made of its image")
        nova.volume_image = None
        refused("journal of the volume's file system is on another device")
        subprocess.run(["mkfs.ext4", *options, device], check=True)
        subprocess.run(["debugfs", "-w", "-R", "clri <2>", device], check=True, capture_output=True)
        subprocess.run(
            ["debugfs", "-w", "-R", "ssv state 2", device], check=True, capture_output=True
        )
        with pytest.raises(exception.RequestRefused, match="e2fsck failed"):
            nova.spawn(server)
        host.client.remove_image(EMPTY)
        with forbidden():
            refused("volume_modes has no 'mount'")
    finally:
        nova.destroy(server)
        nova.stop()


def test_a_server_is_not_rescued_from_its_volume(
    compute_host: ComputeHost, new_volume: NewVolume
) -> None:
    host, device = compute_host, new_volume()
    nova = host.start_nova()
    server = nova.spawn(replace(host.new_server("small", (1,)), root=device))
    try:
        before = host.client.inspect_container(server.name)
        with pytest.raises(exception.RescueRefused, match="boot from a volume"):
            nova.rescue(server)
        assert host.client.inspect_container(server.name)["State"] == before["State"]
    finally:
        nova.destroy(server)
        nova.stop()


def test_a_server_whose_volume_is_full_comes_back(
    compute_host: ComputeHost, new_volume: NewVolume
) -> None:
    """As in an unshelve, and on another host."""
    host, device = compute_host, new_volume()
    nova = host.start_nova()
    server = nova.spawn(replace(host.new_server("small", (1,)), root=device))
    try:
        shell(host, server, "rm -r /data; cat /dev/zero >/full 2>/dev/null; sync")
        nova.reboot(server)
        nova.destroy(server)
        server = nova.spawn(replace(server, ports=(2,)))
        assert shell(host, server, "df / | grep -c 100%") == "1\n"
        assert "10.7.0.2" in shell(host, server, "cat /etc/hosts")
        assert shell(host, server, "stat -c %a:%u /etc/hosts") == "644:0\n"
    finally:
        nova.destroy(server)
        nova.stop()


def test_a_server_does_not_start_without_its_volume(
    compute_host: ComputeHost, new_volume: NewVolume
) -> None:
    host, device = compute_host, new_volume()
    nova = host.start_nova()
    server = nova.spawn(replace(host.new_server("small", (1,)), root=device))
    try:
        shell(host, server, "echo kept >/file")
        nova.power_off(server)
        nova.driver._volumes.disconnect(server.instance(), server.block_devices)
        assert not volume_devices.held(server.uuid)
        with pytest.raises(APIError, match="the volume at /dev/vda is not connected"):
            host.client.start(server.name)
        nova.power_on(server)
        assert shell(host, server, "cat /file") == "kept\n"
    finally:
        nova.destroy(server)
        nova.stop()


def test_two_servers_do_not_boot_from_one_volume(
    compute_host: ComputeHost, new_volume: NewVolume
) -> None:
    host, device = compute_host, new_volume()
    nova = host.start_nova()
    first = nova.spawn(replace(host.new_server("small", (1,)), root=device))
    second = replace(host.new_server("small", (2,)), root=device)
    try:
        with pytest.raises(nova_exception.VolumeAttachFailed, match="another instance"):
            nova.spawn(second)
        assert len(mounts_of(device)) == 1
        with pytest.raises(nova_exception.VolumeAttachFailed, match="another instance"):
            nova.spawn(replace(second, root="", volumes=(device,)))
        assert shell(host, first, "echo alive >/file; cat /file") == "alive\n"
    finally:
        nova.destroy(first)
        nova.destroy(second)
        nova.stop()
