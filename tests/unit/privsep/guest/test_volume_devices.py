# SPDX-License-Identifier: Apache-2.0
import uuid
from pathlib import Path

import pytest

from novadocker.privsep.guest import volume_devices


def test_the_instances_with_files_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_devices, "FOLDER", tmp_path / "run" / "disks")
    assert volume_devices.instances() == set()
    instance = str(uuid.uuid4())
    (tmp_path / "run").mkdir()
    volume_devices.prepare(instance)
    (volume_devices.FOLDER / "other").mkdir()
    assert volume_devices.instances() == {instance}
    volume_devices.forget(instance)
    assert volume_devices.instances() == set()
