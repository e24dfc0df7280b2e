# SPDX-License-Identifier: Apache-2.0
"""The command ``novadocker-image``."""

import contextlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from keystoneauth1 import exceptions as auth_exceptions

from novadocker.cmd import image
from tests import archives

LAYERS = [archives.tar({"one": b"1"}), archives.tar({"two": b"2"}), archives.tar({".wh.one": b""})]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = tmp_path / "image.tar"
    config = archives.config(LAYERS, config={"Cmd": ["init"]})
    path.write_bytes(archives.tar(archives.docker_files(config, LAYERS)))
    return path


def run(*words: object) -> int:
    return image.main(["--architecture", "amd64", *map(str, words)])


def inspect(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert run("inspect", path) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_convert_keeps_the_image(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = inspect(packed, capsys)
    oci, docker = packed.with_name("oci.tar"), packed.with_name("docker.tar")
    assert run("convert", packed, oci, "--to", "oci") == 0
    assert run("convert", oci, docker, "--to", "docker") == 0
    assert inspect(oci, capsys) == inspect(docker, capsys) == before
    assert before["config"] == {"Cmd": ["init"]}


@pytest.mark.parametrize(("keep", "layers"), [(0, 1), (1, 2), (2, 3)])
def test_flatten(packed: Path, capsys: pytest.CaptureFixture[str], keep: int, layers: int) -> None:
    target = packed.with_name("flat.tar")
    assert run("flatten", packed, target, "--keep", keep) == 0
    found = inspect(target, capsys)
    assert len(found["layers"]) == layers  # type: ignore[arg-type]
    assert found["config"] == {"Cmd": ["init"]}


def test_what_is_wrong_is_said(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("flatten", packed, packed.with_name("flat.tar"), "--keep", 3) == 1
    packed.write_bytes(b"no archive" * 100)
    assert run("inspect", packed) == 1
    assert "not a tar archive" in capsys.readouterr().err
    assert [path.name for path in packed.parent.iterdir()] == ["image.tar"]


def test_long_work_is_shown_on_a_terminal(
    packed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[bytes] = []

    class Glance:
        image = property(lambda self: self)

        def create_image(self, name: str, data: Any, **properties: object) -> Any:
            pushed.extend(iter(lambda: data.read(1000), b""))
            return SimpleNamespace(id="made", name=name, **properties)

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(image.openstack, "connect", lambda: contextlib.nullcontext(Glance()))
    assert run("push", packed, "web") == 0
    shown = capsys.readouterr()
    assert shown.out == "made\n"
    assert b"".join(pushed) == packed.read_bytes()
    assert shown.err.startswith("\rchecking [")
    assert "\ruploading [" in shown.err
    assert shown.err.endswith(f"\ruploading: 0 MB{' ' * 30}\n")


def test_a_cloud_that_is_away_is_said(
    packed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Away:
        @property
        def image(self) -> Any:
            raise auth_exceptions.ConnectFailure("no connection to Keystone")

    monkeypatch.setattr(image.openstack, "connect", lambda: contextlib.nullcontext(Away()))
    assert run("push", packed, "web") == 1
    assert "no connection to Keystone" in capsys.readouterr().err
