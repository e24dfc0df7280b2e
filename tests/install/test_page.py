# SPDX-License-Identifier: Apache-2.0
"""The commands of ``docs/install.rst`` run on a Debian of its own, in the page's order.

It is a Debian 12 with Nova in a virtual environment.
"""

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import CHECKOUT, page_commands
from tests.install import packages, system

PAGE = CHECKOUT / "docs/install.rst"

HOST_PACKAGES = (
    *("docker.io", "openvswitch-switch", "sudo", "genisoimage", "gzip", "zstd", "xz-utils"),
    *("lxcfs", "git", "gcc", "libcrypt-dev", "python3-dev", "python3-pip", "python3-venv"),
)

# Commands that these tests do not run, by their beginnings, and why.
LEFT_OUT = {
    "apt install": "the root directory has the packages",
    "openstack": "the system has no cloud",
    "nova-manage": "the system has no cloud",
    "docker save": "the system has no image",
}
OTHER_TESTS = {"Debian packages": "test_packages.py"}

PROXY_URL = "unix:///run/novadocker-engine-proxy.sock"

WARNING = 1
# What such a system lacks: a cloud, kernel modules, its own file system and sysctls.
ACCEPTED = dict.fromkeys(
    ("Compute node", "Kernel budgets", "Bandwidth limits", "Storage driver", "Kernel"), WARNING
) | {"Neutron agent": WARNING, "Own /proc": WARNING, "Resize on the same host": WARNING}


@dataclass(frozen=True)
class Host:
    """A Debian of the tests.

    :ivar pip: pip with the arguments that this host's Python needs
    :ivar prefix: where pip puts programs and sample files
    """

    suite: str
    packages: tuple[str, ...]
    pip: str
    prefix: str

    @property
    def distribution(self) -> bool:
        """Whether Nova is the distribution's."""
        return self.prefix == "/usr/local"


HOSTS = (Host("bookworm", HOST_PACKAGES, "/opt/nova/bin/pip", "/opt/nova"),)


def adapted(host: Host, text: str) -> str:
    """Return a command of the page with the paths of a host, as the page tells the reader to do."""
    text = text.replace("/path/to/novadocker", packages.SOURCE)
    text = text.replace("/usr/local/etc/novadocker", f"{host.prefix}/etc/novadocker")
    words = shlex.split(text)
    if host.distribution and words[0] == "/opt/nova/bin/pip":
        words[:2] = ["pip", words[1], "--break-system-packages"]
    # sudo searches programs in directories of its own.
    words = [f"{host.prefix}/bin/{word}" if word == "novadocker-status" else word for word in words]
    if words[0].startswith("novadocker-"):
        words[0] = f"{host.prefix}/bin/{words[0]}"
    return shlex.join(words)


def is_for(host: Host, command: page_commands.Command) -> bool:
    """Return True if a command is one for this host."""
    if command.section in OTHER_TESTS or any(command.text.startswith(left) for left in LEFT_OUT):
        return False
    # The section has one command for each kind of Nova.
    venv = command.text.startswith("/opt/nova/bin/pip")
    return command.section != "Install the package" or venv is not host.distribution


@pytest.fixture(params=HOSTS, ids=lambda host: host.suite)
def host(request: pytest.FixtureRequest) -> Host:
    found: Host = request.param
    return found


@pytest.fixture
def root(held: Path, host: Host) -> Iterator[Path]:
    """Yield a root directory with what the page requires, and a checkout."""
    with system.copied(held, system.root_folder(held, host.suite, host.packages)) as copy:
        packages.copy_checkout(copy)
        hide_sysctl(copy)
        if not host.distribution:
            install_nova(copy)
        yield copy


def hide_sysctl(root: Path) -> None:
    """Replace sysctl in a root directory, because the system cannot set what no namespace has."""
    stub = root / "usr/local/sbin/sysctl"
    stub.write_text("#!/bin/sh\nexit 0\n")
    stub.chmod(0o755)


def install_nova(root: Path) -> None:
    """Install Nova in a virtual environment, as an operator has it before the page begins."""
    constraints = f"{packages.SOURCE}/devcloud/constraints.txt"
    system.prepare(root, "python3", "-m", "venv", "/opt/nova")
    system.prepare(root, "/opt/nova/bin/pip", "install", "-q", "-c", constraints, "nova")
    system.prepare(root, "useradd", "--system", "--home-dir=/var/lib/nova", "--create-home", "nova")
    system.prepare(root, "cp", "-r", "/opt/nova/etc/nova", "/etc/nova")
    rootwrap = root / "etc/nova/rootwrap.conf"
    rootwrap.write_text(rootwrap.read_text().replace("exec_dirs=", "exec_dirs=/opt/nova/bin,"))
    # Of the page: sudo searches privsep-helper in its secure_path.
    (root / "etc/sudoers.d/nova").write_text(
        'Defaults:nova secure_path="/opt/nova/bin:/usr/sbin:/usr/bin:/sbin:/bin"\n'
        "nova ALL = (root) NOPASSWD: /opt/nova/bin/nova-rootwrap /etc/nova/rootwrap.conf *\n"
    )
    (root / "etc/systemd/system/nova-compute.service").write_text(
        "[Service]\nUser=nova\nExecStart=/opt/nova/bin/nova-compute\n[Install]\n"
        "WantedBy=multi-user.target\n"
    )
    (root / "etc/nova/nova.conf").write_text("[DEFAULT]\nstate_path = /var/lib/nova\n")


def write_configuration(root: Path) -> None:
    """Write nova-compute.conf from the page's sections, with the proxy of the engine's socket."""
    blocks = list(page_commands.blocks(PAGE, "ini"))
    (configuration,) = (text for section, text in blocks if section == "Configure Nova")
    (proxy,) = (text for _, text in blocks if PROXY_URL in text)
    (root / "etc/nova/nova-compute.conf").write_text(f"{configuration}\n{proxy}\n")


def adapt_unit(root: Path, host: Host) -> None:
    """Adapt the program's path in the unit of the proxy, as the page tells the reader to do."""
    unit = root / "etc/systemd/system/novadocker-engine-proxy.service"
    if unit.exists():
        unit.write_text(unit.read_text().replace("=/usr/bin/", f"={host.prefix}/bin/"))


def test_the_page(host: Host, root: Path) -> None:
    commands = [command for command in page_commands.commands(PAGE) if is_for(host, command)]
    # pip needs the network, which the booted system does not have.
    installed = [command for command in commands if " install " in command.text]
    removal = [command for command in commands if command.section == "Remove the driver"]
    # The check is called apart, because its exit status is not 0 on a host without a cloud.
    checks = [command for command in commands if "novadocker-status" in command.text]
    apart = {*installed, *removal, *checks}
    for command in installed:
        system.prepare(root, *shlex.split(adapted(host, command.text)), seconds=1200)
    write_configuration(root)
    (root / "var/lib/nova/compute_id").touch()
    with system.booted(root, "compute-1") as running:
        for command in (command for command in commands if command not in apart):
            if command.section == "The proxy of the engine's socket":
                adapt_unit(root, host)
            run(host, running, command)
        check_host(host, running)
        for command in removal:
            run(host, running, command)
        assert json.loads(running.run("cat", "/etc/docker/daemon.json")).get("runtimes") is None
        python = "python3" if host.distribution else f"{host.prefix}/bin/python3"
        assert "No module named" in running.run(python, "-c", "import novadocker", check=False)
        # Nova itself stays.
        running.run(python, "-c", "import nova.virt.driver")


def run(host: Host, running: system.System, command: page_commands.Command) -> None:
    """Run a command of the page; the answer to a question is yes."""
    running.run("sh", "-c", adapted(host, command.text), seconds=300, text="y\n")


def check_host(host: Host, running: system.System) -> None:
    """Run the page's check, and compare what it says with what this system lacks."""
    status = f"{host.prefix}/bin/novadocker-status"
    output = running.run("sudo", "-u", "nova", status, "upgrade", "check", "--json", check=False)
    (line,) = (line for line in output.splitlines() if line.startswith('{"'))
    rows: list[dict[str, Any]] = json.loads(line)["checks"]
    found = {row["check"]: row for row in rows}
    unexpected = [
        row for row in rows if row["result"] != 0 and ACCEPTED.get(row["check"]) != row["result"]
    ]
    assert unexpected == []
    assert PROXY_URL in found["Docker Engine"]["details"]
    assert f"{host.prefix}/bin/novadocker-runtime" in found["Runtime shim"]["details"]
    assert "in /etc/nova/nova-compute.conf" in found["Configuration"]["details"]
