# SPDX-License-Identifier: Apache-2.0
"""What is on a volume that a server boots from; the volumes are files."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import uuid
from pathlib import Path

import pytest

from novadocker import privsep
from novadocker.linux import ext4
from novadocker.privsep.guest import root_volumes, runtime, volume_devices, volumes
from novadocker.privsep.guest.volume_devices import VolumeDevice
from novadocker.runtime import record

INSTANCE, VOLUME, OTHER, GLANCE_IMAGE = (str(uuid.uuid4()) for _ in range(4))
SIZE = 80 << 20
ROOT = VolumeDevice(VOLUME, "/dev/vda", "/dev/gone", 7, 7, True, False, True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "volume"
    made.touch()
    os.truncate(made, SIZE)
    return made


def content(file: Path, checksum: str = "", length: int = 0) -> str:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        return root_volumes._content(descriptor, GLANCE_IMAGE, checksum, length)
    finally:
        os.close(descriptor)


def write(file: Path, data: bytes, place: int = 0) -> None:
    with file.open("r+b") as output:
        output.seek(place)
        output.write(data)


def make_file_system(file: Path, *options: str) -> None:
    # Debian has the program where ordinary users do not look.
    program = shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("mkfs.ext4 is missing")
    subprocess.run([program, "-q", "-F", *options, file], check=True)


def archive() -> bytes:
    with io.BytesIO() as output:
        with tarfile.open(fileobj=output, mode="w") as tar:
            member = tarfile.TarInfo("manifest.json")
            member.size = 3 << 20
            tar.addfile(member, io.BytesIO(os.urandom(member.size)))
        return output.getvalue()


def test_a_blank_volume(file: Path) -> None:
    assert content(file) == root_volumes.BLANK


@pytest.mark.parametrize("place", [0, 4096, (16 << 20) - 1, SIZE - (16 << 20), SIZE - 1])
def test_a_volume_with_something_on_it(file: Path, place: int) -> None:
    write(file, b"x", place)
    assert content(file) == root_volumes.FOREIGN


def test_the_image_that_cinder_has_written(file: Path) -> None:
    image = archive()
    write(file, image)
    digest = hashlib.md5(image, usedforsecurity=False).hexdigest()
    assert content(file, digest, len(image)) == root_volumes.IMAGE
    # A tenant may have changed it, or Cinder knows no checksum.
    assert content(file, digest, len(image) + 1) == root_volumes.FOREIGN
    assert content(file, digest, SIZE + 1) == root_volumes.FOREIGN
    assert content(file, "", 0) == root_volumes.FOREIGN
    write(file, b"x", 2 << 20)
    assert content(file, digest, len(image)) == root_volumes.FOREIGN


def test_an_archive_that_looks_like_a_file_system(file: Path) -> None:
    make_file_system(file)
    write(file, archive()[:1024])
    assert content(file) == root_volumes.FOREIGN


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("", root_volumes.FILE_SYSTEM),
        ("mine", root_volumes.FILE_SYSTEM),
        ("nova-filling", root_volumes.UNFINISHED),
        ("nova-root", root_volumes.FILLED),
    ],
)
def test_a_file_system(file: Path, label: str, expected: str) -> None:
    make_file_system(file, "-L", label, "-U", GLANCE_IMAGE)
    assert content(file) == expected


def test_a_volume_with_the_files_of_another_image(file: Path) -> None:
    make_file_system(file, "-L", "nova-root", "-U", OTHER)
    assert content(file) == root_volumes.FILE_SYSTEM


def test_a_fill_that_was_cut_off(file: Path) -> None:
    write(file, root_volumes._MARK, SIZE - 4096)
    assert content(file) == root_volumes.UNFINISHED
    # mkfs.ext4 writes its superblock last.
    write(file, os.urandom(4096), 1 << 20)
    assert content(file) == root_volumes.UNFINISHED
    make_file_system(file, "-L", "nova-root", "-U", GLANCE_IMAGE)
    write(file, root_volumes._MARK, SIZE - 4096)
    assert content(file) == root_volumes.FILLED


def test_a_mark_that_a_crash_has_left_beside_a_whole_file_system(file: Path) -> None:
    """The tenant may have named it anew, from another server."""
    make_file_system(file, "-L", "mine", "-U", GLANCE_IMAGE)
    write(file, root_volumes._MARK, SIZE - 4096)
    assert content(file) == root_volumes.FILE_SYSTEM


@pytest.mark.parametrize(
    ("options", "external"),
    [((), False), (("-O", "^has_journal"), False), (("-O", "journal_dev", "-b", "4096"), True)],
)
def test_the_superblock(file: Path, options: tuple[str, ...], external: bool) -> None:
    make_file_system(file, "-L", "a label", *options)
    found = ext4.parse(file.read_bytes()[ext4.OFFSET : ext4.OFFSET + ext4.SIZE])
    assert found is not None
    assert (found.label, found.size, found.external_journal) == (b"a label", SIZE, external)


def test_no_superblock() -> None:
    assert ext4.parse(bytes(1024)) is None
    assert ext4.parse(b"short") is None


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an instance boot from a volume, and have another."""
    monkeypatch.setattr(privsep.volume_pctxt, "client_mode", False)
    monkeypatch.setattr(privsep.transfer_pctxt, "client_mode", False)
    monkeypatch.setattr(volume_devices, "FOLDER", tmp_path / "disks")
    monkeypatch.setattr(volumes, "_update_records", lambda _: None)
    data = VolumeDevice(OTHER, "/dev/vdb", "/dev/gone2", 7, 8, True, False)
    volume_devices.write(INSTANCE, (ROOT, data))


@pytest.mark.usefixtures("held")
def test_the_root_is_no_device_of_the_server(tmp_path: Path) -> None:
    devices, root = volume_devices.recorded(INSTANCE)
    assert [device.path for device in devices] == ["/dev/vdb"]
    assert root is not None
    assert root.path == "/dev/vda"
    folder = tmp_path / "disks" / f"nova-{INSTANCE}" / "by-id"
    assert os.listdir(folder) == [f"virtio-{OTHER[:20]}"]
    assert root_volumes.boots_from_volume(INSTANCE)
    assert not root_volumes.boots_from_volume(OTHER)


@pytest.mark.usefixtures("held")
def test_a_container_without_its_root_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would run with the files of the image, and what the tenant wrote would be lost."""
    monkeypatch.setattr(runtime, "FOLDER", tmp_path / "runtime")
    container, namespace = "c" * 64, f"{record.NETWORK_NAMESPACES}/nova-{INSTANCE}"

    def source() -> str:
        found = record.parse((runtime.FOLDER / container).read_bytes()).root
        assert found is not None
        return found.source

    def write() -> None:
        recorded = volume_devices.recorded(INSTANCE)
        runtime.write(container, namespace, {}, None, None, *recorded)

    write()
    assert source() == "/dev/gone"
    volume_devices.write(INSTANCE, ())
    runtime.replace_devices(container, *volume_devices.recorded(INSTANCE))
    assert source() == "/dev/null"
    write()
    assert source() == "/dev/null"
    volume_devices.write(INSTANCE, (ROOT,))
    runtime.replace_devices(container, *volume_devices.recorded(INSTANCE))
    assert source() == "/dev/gone"


@pytest.mark.usefixtures("held")
def test_the_root_is_neither_given_nor_taken_while_the_server_runs() -> None:
    with pytest.raises(ValueError, match="given by the start"):
        volumes.give(INSTANCE, VOLUME, "c" * 64, 77)
    assert volumes.take(INSTANCE, VOLUME, "c" * 64, 77) == "its root directory"


@pytest.mark.usefixtures("held")
def test_a_mounted_root_is_not_released(monkeypatch: pytest.MonkeyPatch) -> None:
    claimed = iter([True, True, False])
    monkeypatch.setattr(volumes, "is_claimed", lambda _: next(claimed, False))
    assert volumes.release(INSTANCE, VOLUME)
    assert next(claimed, None) is None
    assert not root_volumes.boots_from_volume(INSTANCE)


@pytest.mark.usefixtures("held")
def test_a_root_that_stays_mounted_stays_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "is_claimed", lambda _: True)
    monkeypatch.setattr(volumes, "_UNMOUNT_SECONDS", 0)
    with pytest.raises(OSError, match="still mounted"):
        volumes.release(INSTANCE, VOLUME)
    assert root_volumes.boots_from_volume(INSTANCE)


@pytest.mark.usefixtures("held")
def test_a_mounted_root_is_neither_examined_nor_filled_nor_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(volumes, "is_claimed", lambda _: True)
    with pytest.raises(OSError, match="is mounted"):
        root_volumes.examine(INSTANCE, None, "", 0)
    read, write_ = os.pipe()
    try:
        with pytest.raises(OSError, match="is mounted"):
            root_volumes.fill(INSTANCE, GLANCE_IMAGE, (os.getpid(), read))
    finally:
        os.close(read)
        os.close(write_)
    root_volumes.prepare(INSTANCE)


def test_the_output_of_a_program_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "import sys; sys.stdout.write('a line\\n' * 100_000); sys.exit(3)"
    with pytest.raises(OSError, match=r"failed \(3\): a line; a line") as raised:
        root_volumes._run(sys.executable, "-c", lines)
    assert len(str(raised.value)) < 255
    monkeypatch.setattr(root_volumes, "_SECONDS", 0.1)
    with pytest.raises(OSError, match=r"sleep failed \(-9\)"):
        root_volumes._run("sleep", "60")


def test_no_volume_is_checked_for_other_instances() -> None:
    root_volumes.prepare.args[0](str(uuid.uuid4()))
