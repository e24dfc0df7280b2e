# SPDX-License-Identifier: Apache-2.0
"""The Debian packages on Debian 13 hosts, with and without Debian's own OpenStack."""

import configparser
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import CHECKOUT
from tests.install import debian_cloud, hosts, packages, system
from tests.install.system import System

NAMES = ("python3-novadocker", "nova-compute-docker", "novadocker-exporter")
COMPUTE = ("nova-compute-docker", "nova-compute")
"""The packages that are removed together: apt would replace the first by nova-compute-kvm."""

# The archive alone, because a system has no network.
UPDATE = (
    *("apt-get", "-q", "update", "-o", "Dir::Etc::SourceParts=/dev/null"),
    *("-o", "Dir::Etc::SourceList=/etc/apt/sources.list.d/novadocker.list"),
    *("-o", "APT::Get::List-Cleanup=0"),
)


@dataclass(frozen=True)
class Built:
    """Two successive versions of the packages, and what the builds printed.

    :ivar folders: a directory with an archive for apt for each version, the older one first
    """

    folders: tuple[Path, Path]
    output: str


@pytest.fixture(scope="module")
def built(held: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    work = tmp_path_factory.mktemp("packages")
    with packages.builder(held) as root:
        output = packages.build(root, work / "older")
        packages.build(root, work / "newer")
    return Built((work / "older", work / "newer"), output)


def fields(package: Path) -> dict[str, str]:
    """Return the control fields of a package."""
    done = subprocess.run(
        ["dpkg-deb", "--field", package], check=True, capture_output=True, text=True, timeout=60
    )
    parser = configparser.ConfigParser(delimiters=":", interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(f"[package]\n{done.stdout}")
    return dict(parser["package"])


def contents(package: Path) -> dict[str, str]:
    """Return the files of a package and their modes."""
    done = subprocess.run(
        ["dpkg-deb", "--contents", package], check=True, capture_output=True, text=True, timeout=60
    )
    lines = (line.split(maxsplit=5) for line in done.stdout.splitlines())
    return {line[5].removeprefix("."): line[0] for line in lines if not line[5].endswith("/")}


def test_packages_have_the_commands_with_their_pages_and_no_more(built: Built) -> None:
    older, newer = built.folders
    found = {path.name.split("_")[0]: path for path in older.glob("*.deb")}
    assert set(found) == {*NAMES, "neutron-ml2-novadocker"}
    files = {name: contents(path) for name, path in found.items()}
    setup = configparser.ConfigParser()
    setup.read(CHECKOUT / "setup.cfg")
    lines = setup["entry_points"]["console_scripts"].splitlines()
    commands = {line.split("=")[0].strip() for line in lines if line}
    for kind, place in (
        ("commands", "/usr/bin/{}"),
        ("pages", "/usr/share/man/man8/{}.8.gz"),
    ):
        wanted = sorted(place.format(command) for command in commands)
        folder = place.split("{}")[0]
        assert (
            sorted(path for one in files.values() for path in one if path.startswith(folder))
            == wanted
        ), kind
    for one in files.values():
        assert not [path for path in one if path.startswith(("/usr/local", "/usr/etc"))]
    etc = {name: [path for path in one if path.startswith("/etc")] for name, one in files.items()}
    assert etc.pop("nova-compute-docker") == ["/etc/nova/nova-compute.conf"]
    assert not any(etc.values())
    package = "/usr/lib/python3/dist-packages/novadocker"
    tracked = packages.tracked("novadocker")
    library = files["python3-novadocker"]
    assert [path for path in tracked if f"{package.rpartition('/')[0]}/{path}" not in library] == []
    assert files["python3-novadocker"][f"{package}/runtime/novadocker-runtime"] == "-rwxr-xr-x"
    assert f"{package}-loader.pth" in files["python3-novadocker"]
    version, next_version = (
        fields(next(folder.glob("nova-compute-docker_*")))["Version"] for folder in (older, newer)
    )
    status = subprocess.run(["dpkg", "--compare-versions", version, "lt", next_version])
    assert status.returncode == 0


@contextmanager
def host(held: Path, built: Built, cloud: bool) -> Iterator[tuple[Path, System]]:
    """Boot a Debian on which apt can install the packages.

    :param cloud: whether it has a cloud, which is not configured
    """
    names = debian_cloud.PACKAGES if cloud else ()
    with system.copied(held, system.root_folder(held, packages.SUITE, names)) as root:
        offer(root, built.folders[0])
        (root / "etc/apt/sources.list.d/novadocker.list").write_text(
            "deb [trusted=yes] file:/srv/archive ./\n"
        )
        system.prepare(root, "apt-get", "-q", "update")
        # What the packages depend on becomes available, and stays uninstalled.
        system.prepare(root, *hosts.APT, "--download-only", "install", *NAMES)
        if cloud:
            debian_cloud.prepare(root)
        with system.booted(root) as running:
            yield root, running


def expect_no_cloud(root: Path) -> None:
    """Make systemd report nova-compute as started before it has reached a cloud."""
    unit = root / "etc/systemd/system/nova-compute.service.d"
    unit.mkdir(parents=True)
    (unit / "without-cloud.conf").write_text("[Service]\nType=exec\n")


def offer(root: Path, folder: Path) -> None:
    """Replace the archive of a system."""
    archive = root / "srv/archive"
    archive.mkdir(exist_ok=True)
    for path in archive.iterdir():
        path.unlink()
    for path in folder.iterdir():
        shutil.copy(path, archive)


def upgrade(root: Path, running: System, folder: Path) -> None:
    """Upgrade the packages of a system to those in a directory."""
    offer(root, folder)
    running.run(*UPDATE)
    running.run(*hosts.APT, "install", *NAMES, seconds=600)
    newer = fields(next(folder.glob("nova-compute-docker_*")))["Version"]
    query = ("dpkg-query", "-W", "-f", "${Version}\n", *NAMES)
    assert running.run(*query) == f"{newer}\n" * len(NAMES)
    assert running.run("systemctl", "is-active", "nova-compute") == "active\n"


def check_installation(running: System) -> None:
    """Check the engine and the services of the packages."""
    assert "docker" in running.run("id", "-nG", "nova").split()
    settings = json.loads(running.run("cat", "/etc/docker/daemon.json"))
    shim = "/usr/lib/novadocker/novadocker-runtime"
    assert settings["runtimes"] == {"novadocker": {"path": shim}}
    assert running.run("systemctl", "is-active", "docker", "nova-compute") == "active\n" * 2
    # The exporter starts again until the engine has created its data root.
    fetch = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9419/metrics').read())"
    retry = f'for i in $(seq 30); do python3 -c "{fetch}" && exit; sleep 1; done; exit 1'
    assert "novadocker_" in running.run("sh", "-c", retry)


def remove_and_purge(running: System) -> None:
    """Remove and purge the packages, beside one server that runs and continues to run."""
    before = debian_cloud.process(running)
    said = running.run(*hosts.APT, "remove", *COMPUTE, seconds=600)
    assert "servers of the engine use the runtime (1)" in said
    assert "servers that run keep running" in " ".join(said.split())
    running.run("systemctl", "restart", "docker")
    assert debian_cloud.process(running) == before
    running.run(*hosts.APT, "purge", *NAMES, *COMPUTE, seconds=600)
    assert debian_cloud.process(running) == before
    assert running.status("test", "-e", "/etc/nova/nova-compute.conf") == 1
    assert "docker" not in running.run("id", "-nG", "nova").split()


@pytest.mark.timeout(1800)
def test_a_container_outlives_upgrade_removal_and_purge(
    held: Path, built: Built, tmp_path: Path
) -> None:
    """The commands of the installation page install the packages; the host has no cloud."""
    with host(held, built, cloud=False) as (root, running):
        expect_no_cloud(root)
        shutil.copytree(built.folders[0], root / packages.SOURCE[1:] / "dist")
        *_, install = packages.page()
        running.run("sh", "-c", install, seconds=600)
        exporter = f"apt-get -q -y install {packages.SOURCE}/dist/novadocker-exporter_*.deb"
        running.run("sh", "-c", exporter, seconds=600)
        check_installation(running)
        debian_cloud.write_image(tmp_path, root / "srv/web.tar", tags=("web:1",))
        shutil.copy(system.HERE / "inside/server", root / "srv")
        running.run("/srv/server", "/srv/web.tar", "web:1")
        before = debian_cloud.process(running)
        upgrade(root, running, built.folders[1])
        assert debian_cloud.process(running) == before
        remove_and_purge(running)


@pytest.mark.timeout(2400)
def test_a_server_outlives_upgrade_removal_and_purge(
    held: Path, built: Built, tmp_path: Path
) -> None:
    with host(held, built, cloud=True) as (root, running):
        debian_cloud.write_image(tmp_path, root / "srv/web.tar")
        debian_cloud.start(running)
        running.run(*hosts.APT, "install", *NAMES, seconds=600)
        check_installation(running)
        debian_cloud.wait_for_host(running)
        upload = ("--container-format", "docker", "--disk-format", "raw", "--file", "/srv/web.tar")
        debian_cloud.openstack(running, "image", "create", *upload, "web")
        create = ("--image", "web", "--flavor", "d1", "--nic", "none", "--wait")
        created = debian_cloud.openstack(running, "server", "create", *create, "web1")
        assert "ACTIVE" in created
        before = debian_cloud.process(running)

        upgrade(root, running, built.folders[1])
        assert debian_cloud.process(running) == before
        debian_cloud.wait_for_report(running)
        # The client's --wait ends at once, because the server is active before the reboot, too.
        debian_cloud.openstack(running, "server", "reboot", "--hard", "web1")
        old = before.split()[0]
        gone = f"for i in $(seq 120); do [ -e {old} ] || exit 0; sleep 1; done; exit 1"
        running.run("sh", "-c", gone, seconds=300)
        found = f"pgrep -f '^/bin/sleep {debian_cloud.SLEEP}'"
        up = f"for i in $(seq 120); do {found} && exit; sleep 1; done; exit 1"
        running.run("sh", "-c", up, seconds=300)
        remove_and_purge(running)


@pytest.mark.timeout(1200)
def test_a_host_with_an_engine_keeps_its_settings(held: Path, built: Built) -> None:
    """The locale has no UTF-8, /tmp is full, and the engine's configuration is malformed."""
    kata = {"path": "/usr/bin/kata"}
    valid = json.dumps({"runtimes": {"kata": kata}, "labels": ["rack=ä"]}, ensure_ascii=False)
    # Debian's own packages need a directory for temporary files, so the host has most of them.
    with host(held, built, cloud=True) as (root, running):
        expect_no_cloud(root)
        (root / "etc/docker").mkdir()
        configuration = root / "etc/docker/daemon.json"
        configuration.write_text("{invalid")
        running.run("mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", "/tmp")
        running.run("sh", "-c", "head -c 4096 /dev/zero >/tmp/full")
        plain = {"LANG": "C", "LC_ALL": "C"}
        command = (*hosts.APT, "install", *NAMES)
        said = running.run(*command, seconds=600, environment=plain)
        assert "/etc/docker/daemon.json is not valid JSON, so it was not changed" in said
        assert "Then run: novadocker-engine-config" in said
        assert configuration.read_text() == "{invalid"

        configuration.write_text(valid, encoding="utf-8")
        running.run("dpkg-reconfigure", "nova-compute-docker", environment=plain)
        found = json.loads(configuration.read_text(encoding="utf-8"))
        shim = {"path": "/usr/lib/novadocker/novadocker-runtime"}
        assert found == {
            "runtimes": {"kata": kata, "novadocker": shim},
            "labels": ["rack=ä"],
            "live-restore": True,
        }
        said = running.run(*hosts.APT, "purge", *NAMES, *COMPUTE, seconds=600)
        found = json.loads(configuration.read_text(encoding="utf-8"))
        assert found["runtimes"] == {"kata": kata}


@pytest.mark.timeout(1200)
def test_neutron_finds_the_mechanism_driver(held: Path, built: Built) -> None:
    """Debian 13's Neutron loads the driver as it does at its start."""
    found = (
        "from neutron.conf.plugins.ml2 import config; from neutron.plugins.ml2 import managers; "
        "config.register_ml2_plugin_opts(); from oslo_config import cfg; "
        "cfg.CONF.set_override('mechanism_drivers', ['novadocker'], 'ml2'); "
        "print(managers.MechanismManager().names())"
    )
    with system.copied(held, system.root_folder(held, packages.SUITE, ())) as root:
        offer(root, built.folders[0])
        system.prepare(root, "apt-get", "-q", "update")
        (archive,) = (root / "srv/archive").glob("neutron-ml2-novadocker_*.deb")
        (library,) = (root / "srv/archive").glob("python3-novadocker_*.deb")
        names = [f"/srv/archive/{path.name}" for path in (archive, library)]
        system.prepare(root, *hosts.APT, "install", *names, seconds=900)
        assert "['novadocker']" in system.prepare(root, "python3", "-c", found)
