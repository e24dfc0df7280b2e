# SPDX-License-Identifier: Apache-2.0
from dataclasses import replace
from pathlib import Path

import pytest

from novadocker import exception
from novadocker.linux.namespaces import IdMaps
from novadocker.virt.docker.host import id_maps
from novadocker.virt.docker.model import EngineInfo
from tests.unit import fakes

SUBUID = "someone:100000:65536\ndockremap:300000:1000\ndockremap:200000:65536\nbad\nworse:a:b\n"
SUBGID = "dockremap:400000:65536\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "subuid").write_text(SUBUID)
    (tmp_path / "subgid").write_text(SUBGID)
    return tmp_path


def info(root: str, remapped: bool = True) -> EngineInfo:
    return replace(fakes.INFO, data_root=root, user_namespaces=remapped)


def test_all_ranges_of_the_engines_user(folder: Path) -> None:
    assert id_maps.read_id_maps(info("/var/lib/docker/200000.400000"), folder) == IdMaps(
        users=((0, 200000, 65536), (65536, 300000, 1000)), groups=((0, 400000, 65536),)
    )


def test_an_engine_without_users_of_its_own(folder: Path) -> None:
    assert id_maps.read_id_maps(info("/var/lib/docker/200000.400000", False), folder) is None


@pytest.mark.parametrize(
    ("root", "words"),
    [
        ("/var/lib/docker", "names no ids"),
        # This id is in a range, but is not the start of the user's range.
        ("/var/lib/docker/300000.400000", "id 300000"),
        ("/var/lib/docker/200000.500000", "id 500000"),
    ],
)
def test_what_can_not_be_told(folder: Path, root: str, words: str) -> None:
    with pytest.raises(exception.InvalidConfiguration, match=words):
        id_maps.read_id_maps(info(root), folder)


def test_no_files(tmp_path: Path) -> None:
    with pytest.raises(exception.InvalidConfiguration, match="/subuid lacks"):
        id_maps.read_id_maps(info("/d/1.1"), tmp_path)
