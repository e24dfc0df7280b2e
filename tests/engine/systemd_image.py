# SPDX-License-Identifier: Apache-2.0
"""Debian systems, otherwise unchanged: with systemd, with many services, and with sysvinit."""

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
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


STOCK_PACKAGES = (
    "bind9",
    "cron",
    "curl",
    "dbus",
    "default-jre-headless",
    "haproxy",
    "libpam-systemd",
    "mariadb-server",
    "memcached",
    "nginx-light",
    "openssh-client",
    "openssh-server",
    "polkitd",
    "postfix",
    "postgresql",
    "procps",
    "rabbitmq-server",
    "redis-server",
    "rsyslog",
    "squid",
    "sudo",
    "systemd-resolved",
    "systemd-sysv",
)


def stock_archive(suite: str, network: str) -> Path:
    """Return the path of a tar archive of a Debian with ``STOCK_PACKAGES``.

    Builds it if it does not exist, which takes about five minutes.

    :param suite: Debian's name of the release
    :param network: the path of a network namespace that reaches Debian's packages
    """
    digest = hashlib.sha256(" ".join(STOCK_PACKAGES).encode()).hexdigest()
    found = Path(tempfile.gettempdir()) / f"novadocker-test-stock-{suite}-{digest[:12]}.tar"
    if not found.exists():
        _build(found, suite, STOCK_PACKAGES, network)
    return found


ENGINE_PACKAGES = (
    "busybox-static",
    "ca-certificates",
    "crun",
    "dbus",
    "docker.io",
    "iproute2",
    "iptables",
    "podman",
    "systemd-container",
    "systemd-sysv",
)


def engines_archive(network: str) -> Path:
    """Return the path of a tar archive of a Debian with engines for containers.

    Builds it if it does not exist, which takes about two minutes.

    :param network: the path of a network namespace that reaches Debian's packages
    """
    found = Path(tempfile.gettempdir()) / "novadocker-test-engines-bookworm.tar"
    if not found.exists():
        _build(found, "bookworm", ENGINE_PACKAGES, network)
    return found


def sysvinit_archive(network: str) -> Path:
    """Return the path of a tar archive of a Debian with sysvinit; build it if it does not exist.

    :param network: the path of a network namespace that reaches Debian's packages
    """
    found = Path(tempfile.gettempdir()) / "novadocker-test-sysvinit-bookworm.tar"
    if not found.exists():
        _build(
            found, "bookworm", ("sysvinit-core", "initscripts", "orphan-sysvinit-scripts"), network
        )
    return found


def _build(target: Path, suite: str, packages: Sequence[str], network: str) -> None:
    draft = target.with_suffix(".draft.tar")
    what = ["--variant=minbase", f"--include={','.join(packages)}", suite, draft]
    make = ["nsenter", f"--net={network}", "mmdebstrap", "--mode=root", *what]
    subprocess.run(make, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    draft.rename(target)
