# SPDX-License-Identifier: Apache-2.0
"""The Debian packages on a Debian 13 with Debian's own OpenStack."""

import configparser
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from devcloud.archive import build_archive
from tests import CHECKOUT
from tests.install import packages, system
from tests.install.system import System

CLOUD = (
    *("mariadb-server", "rabbitmq-server", "memcached", "keystone", "placement-api", "glance-api"),
    *("nova-api", "nova-conductor", "nova-scheduler", "python3-openstackclient", "sudo"),
    "busybox-static",
)
SERVICES = (
    *("keystone", "placement-api", "glance-api", "nova-api", "nova-api-metadata"),
    *("nova-conductor", "nova-scheduler"),
)
ONE_PROCESS = (
    "s/^processes = .*/processes = 1/; s/^threads = .*/threads = 1/; /^apparmor/d; s/,apparmor//"
)
NAMES = ("python3-novadocker", "nova-compute-docker", "novadocker-exporter")
COMPUTE = ("nova-compute-docker", "nova-compute")
"""The packages that are removed together: apt would replace the first by nova-compute-kvm."""

APT = ("apt-get", "-q", "-y")
# The archive alone, because a system has no network.
UPDATE = (
    *("apt-get", "-q", "update", "-o", "Dir::Etc::SourceParts=/dev/null"),
    *("-o", "Dir::Etc::SourceList=/etc/apt/sources.list.d/novadocker.list"),
    *("-o", "APT::Get::List-Cleanup=0"),
)
# nova-compute creates the record of its host after it has started.
MAPPED = (
    'su -s /bin/sh -c "nova-manage cell_v2 discover_hosts --verbose" nova | grep -q "Creating host"'
)
SLEEP = "86399"
"""Argument of the server's only process, by which the process is found."""


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
def host(held: Path, built: Built) -> Iterator[tuple[Path, System]]:
    """Boot a Debian with an unconfigured cloud, on which apt can install the packages."""
    with system.copied(held, system.root_folder(held, "trixie", CLOUD)) as root:
        offer(root, built.folders[0])
        (root / "etc/apt/sources.list.d/novadocker.list").write_text(
            "deb [trusted=yes] file:/srv/archive ./\n"
        )
        for name in ("cloud", "no-networks"):
            shutil.copy(system.HERE / "inside" / name, root / "srv")
        system.prepare(root, "apt-get", "-q", "update")
        # The script starts these services, with one process each.
        system.prepare(root, "systemctl", "disable", *SERVICES)
        system.prepare(root, "sh", "-c", f"sed -i '{ONE_PROCESS}' /etc/*/*-uwsgi.ini")
        # What the packages depend on becomes available, and stays uninstalled.
        system.prepare(root, *APT, "--download-only", "install", *NAMES)
        with system.booted(root) as running:
            yield root, running


def offer(root: Path, folder: Path) -> None:
    """Replace the archive of a system."""
    archive = root / "srv/archive"
    archive.mkdir(exist_ok=True)
    for path in archive.iterdir():
        path.unlink()
    for path in folder.iterdir():
        shutil.copy(path, archive)


def process(running: System) -> str:
    """Return the process id of the server in the system, and the time of its start."""
    pid = running.run("pgrep", "-x", "-f", f"/bin/sleep {SLEEP}").strip()
    return running.run("stat", "--format=%n %Y", f"/proc/{pid}")


def openstack(running: System, *words: str) -> str:
    command = '. /root/openrc; exec openstack "$@"'
    return running.run("sh", "-c", command, "sh", *words, seconds=300)


@pytest.mark.timeout(2400)
def test_a_server_outlives_upgrade_removal_and_purge(
    held: Path, built: Built, tmp_path: Path
) -> None:
    rootfs = tmp_path / "rootfs"
    (rootfs / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", rootfs / "bin")
    (rootfs / "bin/sleep").symlink_to("busybox")
    with host(held, built) as (root, running):
        build_archive(rootfs, root / "srv/web.tar", command=["/bin/sleep", SLEEP])
        running.run("/srv/cloud", seconds=900)
        running.run(*APT, "install", *NAMES, seconds=600)
        assert "docker" in running.run("id", "-nG", "nova").split()
        settings = json.loads(running.run("cat", "/etc/docker/daemon.json"))
        shim = "/usr/lib/novadocker/novadocker-runtime"
        assert settings["runtimes"] == {"novadocker": {"path": shim}}
        assert running.run("systemctl", "is-active", "docker", "nova-compute") == "active\n" * 2
        # The exporter starts again until the engine has created its data root.
        fetch = (
            "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9419/metrics').read())"
        )
        retry = f'for i in $(seq 30); do python3 -c "{fetch}" && exit; sleep 1; done; exit 1'
        assert "novadocker_" in running.run("sh", "-c", retry)

        running.run("sh", "-c", f"for i in $(seq 60); do {MAPPED} && exit; sleep 2; done; exit 1")
        upload = ("--container-format", "docker", "--disk-format", "raw", "--file", "/srv/web.tar")
        openstack(running, "image", "create", *upload, "web")
        create = ("--image", "web", "--flavor", "d1", "--nic", "none", "--wait")
        created = openstack(running, "server", "create", *create, "web1")
        assert "ACTIVE" in created
        before = process(running)

        offer(root, built.folders[1])
        running.run(*UPDATE)
        running.run(*APT, "install", *NAMES, seconds=600)
        newer = fields(next(built.folders[1].glob("nova-compute-docker_*")))["Version"]
        query = ("dpkg-query", "-W", "-f", "${Version}\n", *NAMES)
        assert running.run(*query) == f"{newer}\n" * len(NAMES)
        assert running.run("systemctl", "is-active", "nova-compute") == "active\n"
        assert process(running) == before
        # The client's --wait ends at once, because the server is active before the reboot, too.
        openstack(running, "server", "reboot", "--hard", "web1")
        old = before.split()[0]
        gone = f"for i in $(seq 120); do [ -e {old} ] || exit 0; sleep 1; done; exit 1"
        running.run("sh", "-c", gone, seconds=300)
        up = (
            f"for i in $(seq 120); do pgrep -f '^/bin/sleep {SLEEP}' && exit; sleep 1; done; exit 1"
        )
        running.run("sh", "-c", up, seconds=300)
        restarted = process(running)

        said = running.run(*APT, "remove", *COMPUTE, seconds=600)
        assert "servers of the engine use the runtime (1)" in said
        assert "servers that run keep running" in " ".join(said.split())
        running.run("systemctl", "restart", "docker")
        assert process(running) == restarted
        said = running.run(*APT, "purge", *NAMES, *COMPUTE, seconds=600)
        assert process(running) == restarted
        assert running.status("test", "-e", "/etc/nova/nova-compute.conf") == 1
        assert "docker" not in running.run("id", "-nG", "nova").split()


@pytest.mark.timeout(1200)
def test_a_host_with_an_engine_keeps_its_settings(held: Path, built: Built) -> None:
    """The locale has no UTF-8, /tmp is full, and the engine's configuration is malformed."""
    kata = {"path": "/usr/bin/kata"}
    valid = json.dumps({"runtimes": {"kata": kata}, "labels": ["rack=ä"]}, ensure_ascii=False)
    with host(held, built) as (root, running):
        (root / "etc/docker").mkdir()
        configuration = root / "etc/docker/daemon.json"
        configuration.write_text("{invalid")
        running.run("mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", "/tmp")
        running.run("sh", "-c", "head -c 4096 /dev/zero >/tmp/full")
        plain = {"LANG": "C", "LC_ALL": "C"}
        command = (*APT, "install", *NAMES)
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
        said = running.run(*APT, "purge", *NAMES, *COMPUTE, seconds=600)
        found = json.loads(configuration.read_text(encoding="utf-8"))
        assert found["runtimes"] == {"kata": kata}
