# SPDX-License-Identifier: Apache-2.0
"""Packages built from this tree: a source archive, and from it a wheel and an editable wheel."""

import base64
import configparser
import csv
import hashlib
import importlib
import os
import site
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from tests import CHECKOUT

LOADER = "novadocker-loader.pth"
RUNTIME = "novadocker-runtime"
DRIVER = "novadocker.virt.docker.driver"

_setup = configparser.ConfigParser()
_setup.read(CHECKOUT / "setup.cfg")
NEXT_RELEASE = _setup["metadata"]["version"]


@dataclass(frozen=True)
class Built:
    source: Path
    wheel: Path
    editable: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build all three packages, offline and from a copy, because a build leaves files behind."""
    work = tmp_path_factory.mktemp("packaging")
    checkout = work / "checkout"
    checkout.mkdir()
    listed = _run(["git", "ls-files", "-co", "--exclude-standard", "-z"], CHECKOUT)
    present = [name for name in listed.split("\0") if name and (CHECKOUT / name).is_file()]
    names = "\0".join(present).encode()
    subprocess.run(
        ["xargs", "-0", "cp", "--parents", "-t", checkout], input=names, cwd=CHECKOUT, check=True
    )
    # pbr reads the version and the list of files from git; a new clone may have no tag.
    _run(["git", "init", "-q"], checkout)
    _run(["git", "add", "-A"], checkout)
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    _run(["git", *author, "commit", "-q", "-m", "all"], checkout)
    # pbr counts the commits after the first one
    _run(["git", *author, "commit", "-q", "--allow-empty", "-m", "more"], checkout)

    archive = work / _build("sdist", checkout, work)
    _run(["tar", "-xf", str(archive)], work)
    source = work / archive.name.removesuffix(".tar.gz")
    return Built(
        source=source,
        wheel=work / _build("wheel", source, work),
        editable=work / _build("editable", source, work),
    )


def _build(kind: str, source: Path, target: Path) -> str:
    code = f"import build_backend; print(build_backend.build_{kind}({str(target)!r}))"
    return _run([sys.executable, "-c", code], source, PYTHONPATH="pep517").splitlines()[-1]


def _run(command: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["source", "wheel", "editable"])
def test_the_version_is_of_the_release_to_come(built: Built, kind: str) -> None:
    assert getattr(built, kind).name.split("-")[1] == f"{NEXT_RELEASE}.dev1"


@pytest.fixture(params=["wheel", "editable"])
def wheel(request: pytest.FixtureRequest, built: Built) -> Path:
    return Path(getattr(built, request.param))


def test_the_loader_is_at_the_root_for_everybody_to_read(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(LOADER) == (CHECKOUT / LOADER).read_bytes()
        assert archive.getinfo(LOADER).external_attr >> 16 == 0o100644


def test_the_record_lists_every_file_with_its_digest(wheel: Path) -> None:
    """pip leaves files that the record lacks when it removes the package."""
    with zipfile.ZipFile(wheel) as archive:
        record = next(name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
        rows = {row[0]: row[1:] for row in csv.reader(archive.read(record).decode().splitlines())}
        assert set(rows) == set(archive.namelist())
        for name in set(rows) - {record}:
            digest = hashlib.sha256(archive.read(name)).digest()
            encoded = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            assert rows[name] == [f"sha256={encoded}", str(archive.getinfo(name).file_size)]


def test_the_runtime_shim_is_a_script(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(f".data/scripts/{RUNTIME}"))
        assert archive.getinfo(name).external_attr >> 16 & 0o111


@pytest.mark.parametrize("name", ["systemd-generator", "systemd-mount-generator"])
def test_the_generators_of_systemd_can_be_executed(built: Built, name: str) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        generator = archive.getinfo(f"novadocker/runtime/{name}")
    assert generator.external_attr >> 16 & 0o555 == 0o555


VERSIONED = f"python{sys.version_info.major}.{sys.version_info.minor}"


@pytest.mark.parametrize(
    ("scripts", "packages"),
    [
        ("bin", f"lib/{VERSIONED}/site-packages"),
        ("usr/local/bin", f"usr/local/lib/{VERSIONED}/dist-packages"),
        ("usr/bin", "usr/lib/python3/dist-packages"),
        ("target/bin", "target"),
        ("bin", "novadocker is missing"),
        ("bin", "lib/python3.2/site-packages"),
    ],
)
@pytest.mark.parametrize("linked", [False, True])
def test_the_runtime_shim_finds_the_package(
    built: Built, tmp_path: Path, scripts: str, packages: str, linked: bool
) -> None:
    folder, programs = tmp_path / packages, tmp_path / scripts
    with zipfile.ZipFile(built.wheel) as archive:
        archive.extractall(folder)
    programs.mkdir(parents=True, exist_ok=True)
    script = next(folder.glob(f"*.data/scripts/{RUNTIME}")).rename(programs / RUNTIME)
    if linked:
        (tmp_path / "link").symlink_to(script)
        script = tmp_path / "link"
    expected = "the container id is not an id of the engine"
    if packages.endswith("missing") or "3.2" in packages:
        expected = "the Python package novadocker of the runtime shim is missing"
    assert expected in _call_shim(script, tmp_path)


def test_the_runtime_shim_of_an_editable_wheel_is_the_source_s(
    built: Built, tmp_path: Path
) -> None:
    with zipfile.ZipFile(built.editable) as archive:
        archive.extractall(tmp_path)
    script = next(tmp_path.glob(f"*.data/scripts/{RUNTIME}"))
    assert str(built.source) in script.read_text()
    assert "is not an id of the engine" in _call_shim(script, tmp_path)


def _call_shim(script: Path, folder: Path) -> str:
    """Return the error of the shim for the id of no container, which the Python program finds."""
    tools = folder / "tools"
    tools.mkdir()
    for name in ("python3", VERSIONED):
        (tools / name).symlink_to(sys.executable)
    done = subprocess.run(
        ["sh", script, "create", "x"],
        env={"PATH": f"{tools}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    return done.stderr


def test_the_wheel_has_the_package_and_nothing_else(built: Built) -> None:
    version = built.wheel.name.split("-")[1]
    with zipfile.ZipFile(built.wheel) as archive:
        assert {name.partition("/")[0] for name in archive.namelist()} == {
            LOADER,
            "novadocker",
            f"novadocker-{version}.data",
            f"novadocker-{version}.dist-info",
        }


def test_the_wheel_has_every_module(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        packed = {name for name in archive.namelist() if name.endswith(".py")}
    assert packed == {
        str(path.relative_to(built.source)) for path in built.source.glob("novadocker/**/*.py")
    }


def _import_driver(how: str, folder: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """Import the driver by its name in Nova, with Nova and the driver in different directories.

    ``-S`` keeps the interpreter from reading the ``.pth`` files of its own site directories, so
    that Nova's directory is in sys.path and none of its ``.pth`` files has run.

    :param before: code that nova-compute runs before it imports its driver
    """
    code = f"""
import site, sys
sys.path += {site.getsitepackages()!r}
{how}({str(folder)!r})
{before}
from nova.virt import docker
print(docker.DockerDriver.__module__)
"""
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        env={**os.environ, "OS_NOVA_DISABLE_EVENTLET_PATCHING": "true"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_an_unpacked_wheel_serves_the_driver_from_a_site_folder(
    wheel: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    before = "from nova import objects; objects.register_all()"
    done = _import_driver("site.addsitedir", tmp_path, before)
    assert done.stdout.splitlines()[-1:] == [DRIVER], done.stderr


def test_a_folder_that_is_no_site_folder_does_not_serve_it(built: Built, tmp_path: Path) -> None:
    """PYTHONPATH is such a directory; ``novadocker-status`` warns of it."""
    with zipfile.ZipFile(built.wheel) as archive:
        archive.extractall(tmp_path)
    done = _import_driver("sys.path.append", tmp_path)
    assert "cannot import name 'docker' from 'nova.virt'" in done.stderr


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """Return the build backend for an empty checkout in ``tmp_path``."""
    monkeypatch.syspath_prepend(str(CHECKOUT / "pep517"))
    monkeypatch.delenv("PBR_VERSION", raising=False)
    module = importlib.import_module("build_backend")
    monkeypatch.setattr(module, "_CHECKOUT", tmp_path)
    return module


def test_a_copy_without_git_is_named(backend: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="is no git checkout"):
        backend.get_requires_for_build_wheel()
    (tmp_path / "PKG-INFO").touch()
    backend.check_version_source()


def test_a_host_without_git_is_told(
    backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"git is not installed.*build a wheel"):
        backend.get_requires_for_build_editable()
    monkeypatch.setenv("PBR_VERSION", "1.0.0")
    backend.check_version_source()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_checkout_of_another_user_is_told(
    backend: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(["git", "init", "-q"], tmp_path)
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    _run(["git", *author, "commit", "-q", "--allow-empty", "-m", "x"], tmp_path)
    backend.check_version_source()
    # git asks for the owner of both, and of nothing below.
    for path in (tmp_path, tmp_path / ".git"):
        os.chown(path, 12345, 12345)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    with pytest.raises(RuntimeError, match=r"dubious ownership.*must belong to the user"):
        backend.check_version_source()
