# SPDX-License-Identifier: Apache-2.0
"""The description of the Debian packages; ``tests/install`` builds and installs them."""

import configparser
import re
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests import CHECKOUT
from tests.install import packages

DEBIAN = CHECKOUT / "debian"
SCRIPTS = [path for path in DEBIAN.iterdir() if path.suffix in {".postinst", ".prerm", ".postrm"}]


def relations(paragraph: str, field: str) -> set[str]:
    """Return the names of the packages in a field of a binary package."""
    text = (DEBIAN / "control").read_text()
    found = re.search(rf"^{paragraph}\n.*?^{field}:(.*?)^(?=\S)", text + "\nEnd:", re.M | re.S)
    assert found is not None
    names = re.split(r"[,|]", re.sub(r"\([^)]*\)", "", found[1]))
    return {name.strip() for name in names if name.strip()}


def test_the_library_depends_on_its_requirements() -> None:
    lines = (CHECKOUT / "requirements.txt").read_text().split()
    names = {Requirement(line).name for line in lines}
    wanted = {"python3-" + name.removeprefix("python-") for name in names}
    assert wanted - relations("Package: python3-novadocker", "Depends") == set()


def test_the_builder_of_the_tests_has_the_build_dependencies() -> None:
    wanted = relations("Source: novadocker", "Build-Depends") - {"debhelper-compat"}
    assert wanted - set(packages.BUILDER) == set()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_maintainer_scripts_are_shell(path: Path) -> None:
    subprocess.run(["sh", "-n", path], check=True, timeout=60)
    assert "set -e\n" in path.read_text()
    assert "#DEBHELPER#\n" in path.read_text()


@pytest.mark.parametrize(
    ("settings", "restarted"), [('{"bridge": "none"}', True), ('{"live-restore": true}', False)]
)
def test_an_engine_with_containers_is_reloaded_only(
    tmp_path: Path, settings: str, restarted: bool
) -> None:
    """``novadocker-engine-config`` leaves the networks out if the engine has containers."""
    file, calls = tmp_path / "daemon.json", tmp_path / "calls"
    stubs = f"""
    call() {{ echo "$*" >> {calls}; }}
    novadocker-engine-config() {{ echo '{settings}' > {file}; }}
    deb-systemd-invoke() {{ call "$@"; }}
    systemctl() {{ :; }}
    adduser() {{ :; }}
    """
    script = (DEBIAN / "nova-compute-docker.postinst").read_text()
    script = script.replace("/etc/docker/daemon.json", str(file))
    script = script.replace("/run/systemd/system", str(tmp_path))
    script = script.replace("/usr/lib/systemd/systemd-sysctl", "true")
    # dash has no functions with a hyphen in their names.
    subprocess.run(["bash", "-c", stubs + script, "postinst", "configure"], check=True, timeout=60)
    about_engine = [call for call in calls.read_text().splitlines() if "docker.service" in call]
    restart = ["restart docker.service"] if restarted else []
    assert about_engine == ["reload docker.service", *restart]


def test_listed_files_exist() -> None:
    lists = [
        *DEBIAN.glob("*.install"),
        *DEBIAN.glob("*.examples"),
        *DEBIAN.glob("*.docs"),
    ]
    sources = {line.split()[0] for path in lists for line in path.read_text().splitlines()}
    ours = {source for source in sources if not source.startswith("usr/")}
    assert len(ours) > 10
    assert [source for source in ours if not (CHECKOUT / source).exists()] == []


def test_nova_compute_gets_the_driver() -> None:
    parser = configparser.ConfigParser()
    parser.read(DEBIAN / "nova-compute.conf")
    assert parser["DEFAULT"]["compute_driver"] == "docker.DockerDriver"
