# SPDX-License-Identifier: Apache-2.0
"""File systems that the driver makes on loop devices."""

import io
import os
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from novadocker import privsep
from novadocker.linux import pipes
from novadocker.privsep.guest import root_volumes, volume_devices
from novadocker.privsep.guest.volume_devices import VolumeDevice
from tests.engine import loop_devices

INSTANCE, VOLUME, GLANCE_IMAGE, OTHER_IMAGE = (str(uuid.uuid4()) for _ in range(4))
SIZE = 80 << 20
# The header and the content of a member of ``archive``.
MEMBER = 1024


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the device that the instance boots from."""
    monkeypatch.setattr(privsep.transfer_pctxt, "client_mode", False)
    monkeypatch.setattr(volume_devices, "FOLDER", tmp_path / "disks")
    with loop_devices.volume(tmp_path / "volume", SIZE) as found:
        number = os.stat(found).st_rdev
        numbers = os.major(number), os.minor(number)
        root = VolumeDevice(VOLUME, "/dev/vda", found, *numbers, True, False, True)
        volume_devices.write(INSTANCE, (root,))
        yield found


def archive() -> bytes:
    with io.BytesIO() as output:
        with tarfile.open(fileobj=output, mode="w") as tar:
            for number in range(20):
                member = tarfile.TarInfo(f"file{number}")
                member.size = 500
                tar.addfile(member, io.BytesIO(os.urandom(500)))
        return output.getvalue()


def content() -> str:
    found, size = root_volumes.examine(INSTANCE, GLANCE_IMAGE, "", 0)
    assert size == SIZE
    return found


@pytest.mark.usefixtures("device")
def test_an_archive_that_ends_between_two_files_does_not_complete_a_volume() -> None:
    """tar takes it for whole, as when nova-compute dies."""
    for _ in range(2):
        with pipes.written_with([archive()[: 10 * MEMBER]]) as pipe:
            root_volumes.fill(INSTANCE, GLANCE_IMAGE, pipe)
        assert content() == root_volumes.UNFINISHED
        with pytest.raises(OSError, match="not complete"):
            root_volumes.prepare(INSTANCE)
    with pipes.written_with([archive()]) as pipe:
        root_volumes.fill(INSTANCE, GLANCE_IMAGE, pipe)
    for _ in range(2):
        root_volumes.complete(INSTANCE, GLANCE_IMAGE)
        assert content() == root_volumes.FILLED
        root_volumes.prepare(INSTANCE)


def test_only_the_files_of_the_image_are_completed(device: str) -> None:
    with pytest.raises(OSError, match="does not have the files"):
        root_volumes.complete(INSTANCE, GLANCE_IMAGE)
    with pipes.written_with([archive()]) as pipe:
        root_volumes.fill(INSTANCE, GLANCE_IMAGE, pipe)
    before = Path(device).read_bytes()
    with pytest.raises(OSError, match="does not have the files"):
        root_volumes.complete(INSTANCE, OTHER_IMAGE)
    assert Path(device).read_bytes() == before
