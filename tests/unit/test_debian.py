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
