# SPDX-License-Identifier: Apache-2.0
"""The volumes that instances of a host hold, as root."""

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from novadocker import privsep
from novadocker.privsep.guest import volume_devices, volumes
from novadocker.runtime import record
from tests.engine import loop_devices

INSTANCE, OTHER = str(uuid.uuid4()), str(uuid.uuid4())


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(privsep.volume_pctxt, "client_mode", False)
    monkeypatch.setattr(volume_devices, "FOLDER", tmp_path / "disks")
    with loop_devices.volume(tmp_path / "volume", 8 << 20) as made:
        yield made


@pytest.fixture
def mounted(device: str, tmp_path: Path) -> Iterator[str]:
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    folder = tmp_path / "mount"
    folder.mkdir()
    subprocess.run(["mount", device, folder], check=True)
    yield device
    subprocess.run(["umount", folder], check=True)


def fields(source: str, **others: Any) -> dict[str, Any]:
    return {
        "volume_id": str(uuid.uuid4()),
        "path": "/dev/vdb",
        "source": source,
        "writable": True,
        "shared": False,
        "root": False,
        "rates": dict.fromkeys(record.RATES, 0),
        **others,
    }


def test_a_device_that_the_host_uses_is_refused(mounted: str) -> None:
    with pytest.raises(OSError, match="the host uses the device itself"):
        volumes.hold(INSTANCE, fields(mounted))
    assert not volume_devices.held(INSTANCE)


def test_a_device_that_the_instance_has_is_held_again(device: str, tmp_path: Path) -> None:
    wanted = fields(device, shared=True)
    volumes.hold(INSTANCE, wanted)
    # As a container that may mount.
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    folder = tmp_path / "mount"
    folder.mkdir()
    subprocess.run(["mount", device, folder], check=True)
    try:
        volumes.hold(INSTANCE, wanted)
        volumes.hold(OTHER, wanted)
    finally:
        subprocess.run(["umount", folder], check=True)
    assert len(volume_devices.held(OTHER)) == 1
