# SPDX-License-Identifier: Apache-2.0
"""The commands of ``docs/install.rst`` run on Debian hosts, in the page's order.

Debian 13 has the distribution's Nova and cloud, which boots a server. Debian 12 has Nova in a
virtual environment, and no cloud.
"""

import json
import re
import shlex
from pathlib import Path

import pytest

from tests import CHECKOUT, page_commands
from tests.install import debian_cloud, hosts, packages, system
from tests.install.hosts import Host
from tests.install.system import System
from tests.page_commands import Command

PAGE = CHECKOUT / "docs/install.rst"
PROXY_URL = "unix:///run/novadocker-engine-proxy.sock"

OTHER_TESTS = {"Debian packages": "test_packages.py"}
# Commands that need a cloud, by their beginnings.
OF_THE_CLOUD = ("openstack ", "nova-manage ", "docker save ")
REGISTERED = "openstack hypervisor list"
DELETED = "openstack compute service delete ID"
STATUS = "novadocker-status"
# The section "Configure Nova" has one for a host with another driver, which this one never had.
REMOVAL = "Remove the driver"


def adapted(host: Host, text: str) -> str:
    """Return a command of the page with the paths of a host, as the page tells the reader to do."""
    # Nobody answers apt.
    text = re.sub(r"^apt install ", "apt install --yes ", text)
    text = text.replace("/path/to/novadocker", packages.SOURCE)
    text = text.replace("/usr/local/etc/novadocker", f"{host.prefix}/etc/novadocker")
    words = shlex.split(text)
    if not host.virtualenv and words[0] == "/opt/nova/bin/pip":
        words[:2] = ["pip", words[1], "--break-system-packages"]
    # sudo searches programs in directories of its own.
    words = [f"{host.prefix}/bin/{word}" if word == STATUS else word for word in words]
    if words[0].startswith("novadocker-"):
        words[0] = f"{host.prefix}/bin/{words[0]}"
    return shlex.join(words)


def is_for(host: Host, command: Command) -> bool:
    """Return True if a host runs a command."""
    if command.section in OTHER_TESTS:
        return False
    if command.text.startswith(OF_THE_CLOUD):
        return not host.virtualenv and (command.text != DELETED or command.section == REMOVAL)
    # The section has one command for each kind of Nova.
    venv = command.text.startswith("/opt/nova/bin/pip")
    return command.section != "Install the package" or venv is bool(host.virtualenv)


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


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("host", hosts.HOSTS, ids=lambda host: host.suite)
def test_the_page(held: Path, host: Host, tmp_path: Path) -> None:
    commands = [command for command in page_commands.commands(PAGE) if is_for(host, command)]
    # apt and pip need the network, which the booted system does not have.
    installed = [command for command in commands if " install " in command.text]
    removal = [command for command in commands if command.section == REMOVAL]
    with hosts.prepared(held, host) as root:
        packages.copy_checkout(root)
        if not host.virtualenv:
            # The package of the engine recommends it, and the systems have no such packages.
            system.prepare(root, *hosts.APT, "install", "docker-cli")
        for command in installed:
            system.prepare(root, *shlex.split(adapted(host, command.text)), seconds=1200)
        write_configuration(root)
        # The page deletes the record of another driver.
        (root / "var/lib/nova/compute_id").touch()
        if not host.virtualenv:
            debian_cloud.write_image(tmp_path, root / "srv/web.tar", tags=("web:1",))
        with system.booted(root, "compute-1") as running:
            if not host.virtualenv:
                debian_cloud.start(running)
            before = ""
            for command in commands:
                if command in installed or command in removal:
                    continue
                if command.section == "The proxy of the engine's socket":
                    adapt_unit(root, host)
                if command.section == "Upgrade" and not host.virtualenv and not before:
                    before = boot_server(running)
                run(host, running, command)
            check_host(host, running)
            if before:
                assert debian_cloud.process(running) == before
                debian_cloud.openstack(running, "server", "delete", "--wait", "web-1")
            for command in removal:
                run(host, running, command)
            check_removal(host, running)


def run(host: Host, running: System, command: Command) -> None:
    """Run a command of the page; the answer to a question is yes."""
    text = adapted(host, command.text)
    if STATUS in text:
        # Its exit status is not 0, because the host lacks some things.
        check_host(host, running)
        return
    if text.startswith("docker save"):
        running.run("docker", "load", "--input", "/srv/web.tar")
    if text.startswith("openstack flavor set"):
        # The page's reader has a flavor.
        size = ("--ram", "128", "--disk", "0", "--vcpus", "1")
        debian_cloud.openstack(running, "flavor", "create", *size, "d1.small")
    if text == DELETED:
        listed = ("service", "list", "--service", "nova-compute", "-f", "value", "-c", "ID")
        # The client warns on the lines before.
        *_, service = debian_cloud.openstack(running, "compute", *listed).split()
        text = text.replace("ID", service)
    if text == REGISTERED:
        # The page tells the reader to repeat the command before until the list has the host.
        debian_cloud.wait_for_host(running)
        return
    shell = f". /root/openrc; {text}" if text.startswith("openstack ") else text
    running.run("sh", "-c", shell, seconds=300, text="y\n")


def boot_server(running: System) -> str:
    """Boot a server from the page's image and flavor; return its process."""
    create = ("--image", "web", "--flavor", "d1.small", "--nic", "none", "--wait")
    assert "ACTIVE" in debian_cloud.openstack(running, "server", "create", *create, "web-1")
    return debian_cloud.process(running)


def check_host(host: Host, running: System) -> None:
    """Run the page's check, and compare what it names with this host."""
    found = hosts.check(host, running)
    assert PROXY_URL in found["Docker Engine"]
    assert f"{host.prefix}/bin/novadocker-runtime" in found["Runtime shim"]
    assert "in /etc/nova/nova-compute.conf" in found["Configuration"]


def check_removal(host: Host, running: System) -> None:
    """Check that novadocker is gone and Nova is not."""
    assert json.loads(running.run("cat", "/etc/docker/daemon.json")).get("runtimes") is None
    assert "No module named" in running.run(host.python, "-c", "import novadocker", check=False)
    running.run(host.python, "-c", "import nova.virt.driver")
