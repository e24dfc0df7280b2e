# SPDX-License-Identifier: Apache-2.0
"""The Ansible role configures a clean Debian to its end, and its second run changes nothing."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import CHECKOUT
from tests.install import debian_cloud, hosts, packages, system
from tests.install.hosts import Host
from tests.install.system import System

DEPLOYMENT = CHECKOUT / "deployment"
ROLE = DEPLOYMENT / "ansible/roles/novadocker"

ENVIRONMENT = "/opt/ansible"
PLAYBOOK = f"{ENVIRONMENT}/bin/ansible-playbook"
INVENTORY = (
    "[novadocker]\nlocalhost ansible_connection=local ansible_python_interpreter=/usr/bin/python3\n"
)
# What a host of a cloud has beside Nova. Ansible's module of apt needs the second one, and would
# install it with a network.
ON_THE_HOST = ("openvswitch-switch", "python3-apt", "sudo")
WHEELS = "/srv/wheels"
# pip of an isolated build has no other source than the directory of wheels.
BUILD_REQUIREMENTS = ("setuptools", "wheel")

# A default route for the facts of Ansible, because the role takes the address of nova-compute from
# it; and what Neutron's agent does on a host.
NETWORK = (
    "ip link add eth0 type veth peer name gateway && ip address add 192.0.2.21/24 dev eth0 && "
    "ip link set eth0 up && ip link set gateway up && ip route add default via 192.0.2.1 && "
    "ovs-vsctl set-manager ptcp:6640:127.0.0.1"
)

# The Debian 12 has the proxy of the engine's socket.
PROXIES = {"bookworm": True, "trixie": False}


def variables(host: Host, wheel: str) -> dict[str, Any]:
    """Return the variables of the role for a host without a network."""
    return {
        "novadocker_wheel": wheel,
        "novadocker_virtualenv": host.virtualenv,
        "novadocker_pip_arguments": f"--no-index --find-links={WHEELS}",
        "novadocker_proxy": PROXIES[host.suite],
    }


def build_wheel(folder: Path) -> Path:
    """Build the wheel of a copy of the checkout, because a build leaves files behind."""
    packages.copy_checkout(folder)
    source = folder / packages.SOURCE[1:]
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", folder, source], check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    return wheel


def fetch(root: Path, host: Host, wheel: str) -> None:
    """Download what the role installs by apt and pip, and install nothing."""
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    apt = (*hosts.APT, "--download-only", "--no-install-recommends", "install")
    system.prepare(root, *apt, *defaults["novadocker_packages"], seconds=1200)
    # pip of the distribution is not on the host before the role has installed it.
    system.prepare(root, *hosts.APT, "install", "python3-venv")
    pip = f"{host.virtualenv or '/srv/pip'}/bin/pip"
    if not host.virtualenv:
        system.prepare(root, "python3", "-m", "venv", "--system-site-packages", "/srv/pip")
    extra = "[engine-proxy]" if PROXIES[host.suite] else ""
    report = ("install", "-q", "--dry-run", "--report", "/srv/report")
    system.prepare(root, pip, *report, f"{wheel}{extra}", seconds=1200)
    found = json.loads((root / "srv/report").read_text())["install"]
    named = [f"{one['metadata']['name']}=={one['metadata']['version']}" for one in found]
    wanted = [name for name in named if not name.startswith("novadocker==")]
    download = ("download", "-q", "--no-deps", "-d", WHEELS)
    system.prepare(root, pip, *download, *wanted, *BUILD_REQUIREMENTS, seconds=1200)


def install_ansible(root: Path) -> None:
    """Install the Ansible of the other tests of the role, and the playbook."""
    text = (DEPLOYMENT / "tests/requirements.txt").read_text()
    (requirement,) = re.findall(r"^ansible-core==.*$", text, re.MULTILINE)
    system.prepare(root, "python3", "-m", "venv", ENVIRONMENT)
    system.prepare(root, f"{ENVIRONMENT}/bin/pip", "install", "-q", requirement, seconds=1200)
    shutil.copytree(DEPLOYMENT / "ansible", root / "srv/ansible")
    (root / "srv/inventory").write_text(INVENTORY)


def play(running: System) -> str:
    """Run the playbook and return its output."""
    arguments = f"{PLAYBOOK} --inventory /srv/inventory --extra-vars @/srv/variables.json site.yml"
    return running.run("sh", "-c", f"cd /srv/ansible && exec {arguments}", seconds=1200)


def counted(output: str, kind: str) -> int:
    """Return how many tasks were of a kind, such as changed, in the recap of a run."""
    (count,) = re.findall(rf"^localhost .*\b{kind}=(\d+)", output, re.MULTILINE)
    return int(count)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("host", hosts.HOSTS, ids=lambda host: host.suite)
def test_a_second_run_changes_nothing(held: Path, host: Host, tmp_path: Path) -> None:
    with hosts.prepared(held, host) as root:
        built = build_wheel(tmp_path)
        shutil.copy(built, root / "srv")
        wheel = f"/srv/{built.name}"
        system.prepare(root, *hosts.APT, "install", *ON_THE_HOST, seconds=1200)
        fetch(root, host, wheel)
        install_ansible(root)
        (root / "srv/variables.json").write_text(json.dumps(variables(host, wheel)))
        with system.booted(root) as running:
            running.run("sh", "-c", NETWORK)
            if not host.virtualenv:
                debian_cloud.start(running)
            first = play(running)
            assert counted(first, "changed") > 10
            before = state(running)
            second = play(running)
            assert counted(second, "changed") == 0, second
            assert counted(second, "ok") > 10
            assert state(running) == before
            check_host(host, running)


def state(running: System) -> str:
    """Return what changes when a service starts anew or the engine's configuration changes."""
    units = ("docker.service", "nova-compute.service", "novadocker-engine-proxy.socket")
    shown = ("--property=Id", "--property=InvocationID", "--property=UnitFileState")
    return running.run("systemctl", "show", *shown, *units) + running.run(
        "stat", "--format=%n %y %i", "/etc/docker/daemon.json", "/etc/nova/nova-compute.conf"
    )


def check_host(host: Host, running: System) -> None:
    """Check that the host is what the installation page describes."""
    found = hosts.check(host, running)
    assert f"{host.prefix}/bin/novadocker-runtime" in found["Runtime shim"]
    assert "in /etc/nova/nova-compute.conf" in found["Configuration"]
    member = "docker" in running.run("id", "-nG", "nova").split()
    assert member is not PROXIES[host.suite]
    assert ("novadocker-engine-proxy.sock" in found["Docker Engine"]) is PROXIES[host.suite]
    written = running.run("cat", "/etc/nova/nova-compute.conf")
    assert "my_ip = 192.0.2.21\n" in written
    if not host.virtualenv:
        debian_cloud.wait_for_host(running)
