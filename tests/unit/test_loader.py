# SPDX-License-Identifier: Apache-2.0
import importlib
import sys
from pathlib import Path

import nova.virt
import pytest
from nova.virt import driver as nova_driver

from novadocker import _loader
from novadocker.virt.docker import driver


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install this project's finder alone, with no driver loaded."""
    others = [
        finder
        for finder in sys.meta_path
        if type(finder).__module__ != _loader.AliasFinder.__module__
    ]
    monkeypatch.setattr(sys, "meta_path", others)
    monkeypatch.delitem(sys.modules, _loader.ALIAS, raising=False)
    monkeypatch.delattr("nova.virt.docker", raising=False)
    _loader.install()


def test_nova_loads_the_driver_by_its_short_name(installed: None) -> None:
    found = nova_driver.load_compute_driver("virtapi", "docker.DockerDriver")
    assert type(found) is driver.DockerDriver
    assert found.virtapi == "virtapi"


def test_it_finds_no_other_name() -> None:
    for name in ("nova.virt.docker.driver", "nova.virt.libvirt", "docker"):
        assert _loader.AliasFinder().find_spec(name, None) is None


def test_installing_twice_adds_one_finder(installed: None) -> None:
    _loader.install()
    assert sum(isinstance(finder, _loader.AliasFinder) for finder in sys.meta_path) == 1


def test_a_module_that_is_really_there_wins(
    installed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "docker.py").write_text("")
    monkeypatch.setattr(nova.virt, "__path__", [*nova.virt.__path__, str(tmp_path)])
    assert importlib.import_module(_loader.ALIAS).__file__ == str(tmp_path / "docker.py")


def test_an_error_in_the_driver_is_not_hidden(
    installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_loader, "TARGET", "novadocker.no_such_module")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        importlib.import_module(_loader.ALIAS)
    assert _loader.ALIAS not in sys.modules
