# SPDX-License-Identifier: Apache-2.0
"""Debian's minimal system with systemd and D-Bus, otherwise as it comes."""

import shutil
import subprocess
import tempfile
from pathlib import Path

# kept from session to session: it takes a minute or two to make
ARCHIVE = Path(tempfile.gettempdir()) / "novadocker-test-systemd-bookworm.tar"


def archive(network: str) -> Path:
    """Return a tar archive of its files, which is made if it is not there.

    :param network: the path of a network namespace in which Debian's packages can be had
    """
    if not ARCHIVE.exists():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "root"
            what = ["--variant=minbase", "--include=systemd-sysv,dbus", "bookworm", root]
            make = ["nsenter", f"--net={network}", "debootstrap", *what]
            subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
            (root / "etc/machine-id").write_text("")
            made = Path(folder) / "made.tar"
            subprocess.run(
                ["tar", "-C", root, "--exclude=./var/cache/apt", "-cf", made, "."], check=True
            )
            shutil.move(made, ARCHIVE)
    return ARCHIVE
