# SPDX-License-Identifier: Apache-2.0
"""Debian hosts with Nova, as an operator has them before novadocker is installed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import CHECKOUT
from tests.install import debian_cloud, system

WARNING = 1
# What such a system lacks: networks, kernel modules, its own file system and sysctls. Without a
# cloud, it has no node in Placement.
ACCEPTED = dict.fromkeys(
    ("Compute node", "Kernel budgets", "Bandwidth limits", "Storage driver", "Kernel"), WARNING
) | {"Neutron agent": WARNING, "Own /proc": WARNING, "Resize on the same host": WARNING}

APT = ("apt-get", "-q", "-y")

# Python 3.11 has no older pip.
_OLDEST_PIP = "22.3"


@dataclass(frozen=True)
class Host:
    """A Debian of the tests.

    :ivar virtualenv: the virtual environment with Nova from pip; empty if Nova is the
        distribution's, with a cloud on the same host
    """

    suite: str
    virtualenv: str

    @property
    def prefix(self) -> str:
        """Where pip puts programs and sample files."""
        return self.virtualenv or "/usr/local"

    @property
    def python(self) -> str:
        """The Python of nova-compute."""
        return f"{self.virtualenv}/bin/python3" if self.virtualenv else "python3"


HOSTS = (Host("bookworm", "/opt/nova"), Host("trixie", ""))


@contextmanager
def prepared(held: Path, host: Host) -> Iterator[Path]:
    """Yield a root directory of a host with Nova, whose apt knows the packages of its Debian."""
    packages = () if host.virtualenv else debian_cloud.PACKAGES
    with system.copied(held, system.root_folder(held, host.suite, packages)) as root:
        # The system cannot set what no namespace has.
        stub = root / "usr/local/sbin/sysctl"
        stub.write_text("#!/bin/sh\nexit 0\n")
        stub.chmod(0o755)
        system.prepare(root, "apt-get", "-q", "update")
        if host.virtualenv:
            system.prepare(root, *APT, "install", "python3-venv", "sudo")
            _install_nova(root, host.virtualenv)
        else:
            system.prepare(root, *APT, "install", "nova-compute", seconds=1200)
            # Without a configuration it would hold up the boot.
            system.prepare(root, "systemctl", "disable", "nova-compute")
            debian_cloud.prepare(root)
        yield root


def _install_nova(root: Path, virtualenv: str) -> None:
    constraints = root / "srv/constraints.txt"
    constraints.write_text((CHECKOUT / "devcloud/constraints.txt").read_text())
    pip = (f"{virtualenv}/bin/pip", "install", "-q")
    system.prepare(root, "python3", "-m", "venv", virtualenv)
    system.prepare(root, *pip, "-c", "/srv/constraints.txt", "nova", seconds=1200)
    system.prepare(root, *pip, f"pip=={_OLDEST_PIP}")
    system.prepare(root, "useradd", "--system", "--home-dir=/var/lib/nova", "--create-home", "nova")
    system.prepare(root, "cp", "-r", f"{virtualenv}/etc/nova", "/etc/nova")
    rootwrap = root / "etc/nova/rootwrap.conf"
    rootwrap.write_text(rootwrap.read_text().replace("exec_dirs=", f"exec_dirs={virtualenv}/bin,"))
    # Of the page: sudo searches privsep-helper in its secure_path.
    (root / "etc/sudoers.d/nova").write_text(
        f'Defaults:nova secure_path="{virtualenv}/bin:/usr/sbin:/usr/bin:/sbin:/bin"\n'
        f"nova ALL = (root) NOPASSWD: {virtualenv}/bin/nova-rootwrap /etc/nova/rootwrap.conf *\n"
    )
    (root / "etc/systemd/system/nova-compute.service").write_text(
        f"[Service]\nUser=nova\nExecStart={virtualenv}/bin/nova-compute\n[Install]\n"
        "WantedBy=multi-user.target\n"
    )
    (root / "etc/nova/nova.conf").write_text("[DEFAULT]\nstate_path = /var/lib/nova\n")


def check(host: Host, running: system.System) -> dict[str, str]:
    """Run ``novadocker-status``, and compare what it says with what this system lacks.

    :return: the details of each check
    """
    status = f"{host.prefix}/bin/novadocker-status"
    output = running.run("sudo", "-u", "nova", status, "upgrade", "check", "--json", check=False)
    (line,) = (line for line in output.splitlines() if line.startswith('{"'))
    rows: list[dict[str, Any]] = json.loads(line)["checks"]
    unexpected = [
        row for row in rows if row["result"] != 0 and ACCEPTED.get(row["check"]) != row["result"]
    ]
    assert unexpected == []
    return {row["check"]: row["details"] for row in rows}
