# SPDX-License-Identifier: Apache-2.0
"""Debian's minimal system with systemd and D-Bus, otherwise unchanged."""

import shutil
import subprocess
import tempfile
from pathlib import Path

# The archive is kept between sessions, because a build takes a minute or two.
ARCHIVE = Path(tempfile.gettempdir()) / "novadocker-test-systemd-bookworm.tar"


def archive(network: str) -> Path:
    """Return the path of the system's tar archive; build it if it does not exist.

    :param network: the path of a network namespace that reaches Debian's packages
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
