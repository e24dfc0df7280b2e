# SPDX-License-Identifier: Apache-2.0
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from novadocker.virt.docker.host import filesystem
from novadocker.virt.docker.limits import disk
from tests.unit import fakes


@dataclass
class Mount:
    device: str


@pytest.mark.parametrize(
    ("driver", "flags", "expected"),
    [
        ("btrfs", {"loop1": "1"}, True),
        ("btrfs", {"loop1": "0", "loop2": "1"}, False),
        # Without quotas, no rescan is needed.
        ("btrfs", {"loop1": None}, False),
        ("btrfs", {}, False),
        ("overlay2", {"loop1": "1"}, False),
    ],
)
def test_inconsistent_quotas(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    driver: str,
    flags: dict[str, str | None],
    expected: bool,
) -> None:
    for number, (device, flag) in enumerate(flags.items()):
        folder = tmp_path / f"fsid{number}"
        (folder / "devices" / device).mkdir(parents=True)
        if flag is not None:
            (folder / "qgroups").mkdir()
            (folder / "qgroups" / "inconsistent").write_text(f"{flag}\n")
    monkeypatch.setattr(filesystem, "mount_of", lambda path: Mount("/dev/loop1"))
    assert (
        disk.quotas_are_inconsistent(replace(fakes.INFO, storage_driver=driver), tmp_path)
        is expected
    )
