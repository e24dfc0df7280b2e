# SPDX-License-Identifier: Apache-2.0
"""``make demo`` in a clone of the repository on a clean Debian, as ``README.rst`` describes it."""

from pathlib import Path

import pytest

from tests.install import hosts, packages, system

MAKE = ("make", "-C", packages.SOURCE)
IMAGES = f"cd {packages.SOURCE} && .devcloud/venv/bin/python -m devcloud images"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_a_server_boots(held: Path, suite: str) -> None:
    with system.copied(held, system.root_folder(held, suite, [])) as root:
        packages.copy_checkout(root)
        system.prepare(root, "apt-get", "-q", "update")
        system.prepare(root, *hosts.APT, "install", "git", "make", "python3")
        units = root / "etc/systemd/system"
        before = set(units.glob("*.wants/*"))
        # The booted system has no network for apt, pip and the image of a login server.
        system.prepare(root, *MAKE, "install", seconds=1800)
        system.prepare(root, "sh", "-c", IMAGES, seconds=1800)
        # The services of the packages start at the next boot of a host, not at the installation.
        for link in set(units.glob("*.wants/*")) - before:
            link.unlink()
        with system.booted(root, "demo") as running:
            shown = running.run(*MAKE, "demo", seconds=1200)
            assert "the demo works" in shown
            assert "ssh debian@" in shown
