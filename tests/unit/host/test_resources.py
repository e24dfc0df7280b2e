# SPDX-License-Identifier: Apache-2.0
import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from novadocker.virt.docker.host import filesystem, resources
from novadocker.virt.docker.host.topology import CpuSets
from tests.unit import fakes

Mount = namedtuple("Mount", ["mountpoint", "opts"])
MOUNTS = [
    Mount("/", "rw,relatime"),
    Mount("/srv", "rw,prjquota"),
    Mount("/srv/other", "rw"),
    Mount("/var/lib/docker", "rw,relatime"),
    # This mount hides the one before.
    Mount("/var/lib/docker", "rw,prjquota,attr2"),
]


@pytest.mark.parametrize(
    ("driver", "data_root", "expected"),
    [
        ("btrfs", "/", True),
        ("zfs", "/", True),
        ("vfs", "/srv", False),
        ("overlayfs", "/srv", False),
        ("overlay2", "/var/lib/docker", True),
        ("overlay2", "/srv/docker", True),
        ("overlay2", "/srv/other/docker", False),
        ("overlay2", "/srvx", False),
    ],
)
def test_which_engines_size_disks(
    monkeypatch: pytest.MonkeyPatch, driver: str, data_root: str, expected: bool
) -> None:
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: MOUNTS)
    info = replace(fakes.INFO, storage_driver=driver, data_root=data_root)
    assert filesystem.can_size_disks(info) is expected


def test_size_of_a_disk_whose_folder_is_closed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = os.statvfs

    def statvfs(path: Path) -> os.statvfs_result:
        if path.name == "200000.200000":
            raise PermissionError(path)
        return real(path)

    monkeypatch.setattr(os, "statvfs", statvfs)
    info = replace(fakes.INFO, data_root=f"{tmp_path}/200000.200000")
    found = resources.read_resources(info, CpuSets(frozenset([0, 1]), frozenset([2]), True))
    assert found.disk_gb == shutil.disk_usage(tmp_path).total >> 30
    assert (found.vcpus, found.pcpus) == (2, 1)


def test_features_of_this_machine() -> None:
    assert all(word == word.strip() for word in resources.read_cpu_features())
