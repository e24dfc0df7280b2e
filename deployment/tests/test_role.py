# SPDX-License-Identifier: Apache-2.0
"""The Ansible role, as far as it runs without a host; ``tests/install`` applies it to one."""

import configparser
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
ANSIBLE = CHECKOUT / "deployment/ansible"
ROLE = ANSIBLE / "roles/novadocker"
PLAYBOOK = Path(sys.executable).parent / "ansible-playbook"


def defaults() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    return found


def play(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(PLAYBOOK, "--inventory", "localhost,", "--connection", "local"),
            *("--extra-vars", f"ansible_python_interpreter={sys.executable}", *arguments),
        ],
        cwd=ANSIBLE,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_playbook_is_valid() -> None:
    checked = play("--syntax-check", "site.yml")
    assert checked.returncode == 0, checked.stderr


def test_the_files_that_the_role_installs_exist() -> None:
    """The role takes samples from the installation, whose directory is ``etc`` of the checkout."""
    text = "".join(path.read_text() for path in (ROLE / "tasks").glob("*.yml"))
    named = re.findall(r"etc/novadocker/(.+?)\"", text)
    assert len(named) == 4, named
    for name in named:
        for item in ("docker", "lxcfs") if ".service.d" in name else ("service", "socket"):
            assert (CHECKOUT / "etc" / name.replace("{{ item }}", item)).exists()


def test_every_handler_exists() -> None:
    listed = yaml.safe_load((ROLE / "handlers/main.yml").read_text())
    handlers = {handler["name"] for handler in listed}
    text = "".join(path.read_text() for path in (ROLE / "tasks").glob("*.yml"))
    named = set(re.findall(r"notify: (\w.*)", text))
    assert named <= handlers
    # The drop-ins have handlers by name: the engine's and that of lxcfs.
    assert handlers == named | {"Restart the engine", "Restart lxcfs"}


def test_every_variable_is_documented_and_used() -> None:
    page = (CHECKOUT / "docs/deployment.rst").read_text()
    files = [path for path in ROLE.rglob("*") if path.is_file() and path.parent.name != "defaults"]
    text = "".join(path.read_text() for path in files)
    for name in defaults():
        assert f"``{name}``" in page
        assert name in text


@pytest.mark.parametrize("proxy", [False, True])
def test_the_configuration_is_what_nova_reads(tmp_path: Path, proxy: bool) -> None:
    variables = {
        **defaults(),
        "novadocker_proxy": proxy,
        "novadocker_configuration": {
            **defaults()["novadocker_configuration"],
            "docker": {"lxcfs_folder": "/srv/lxcfs"},
        },
        "ansible_facts": {"default_ipv4": {"address": "192.0.2.11"}},
    }
    playbook = [
        {
            "hosts": "localhost",
            "gather_facts": False,
            "vars": variables,
            "tasks": [
                {
                    "name": "write",
                    "ansible.builtin.template": {
                        "src": str(ROLE / "templates/nova-compute.conf.j2"),
                        "dest": str(tmp_path / "nova-compute.conf"),
                        "mode": "0644",
                    },
                }
            ],
        }
    ]
    file = tmp_path / "playbook.yml"
    file.write_text(yaml.safe_dump(playbook))
    done = play(file)
    assert done.returncode == 0, done.stdout + done.stderr
    found = configparser.ConfigParser()
    found.read(tmp_path / "nova-compute.conf")
    assert found["DEFAULT"]["my_ip"] == "192.0.2.11"
    url = "unix:///run/novadocker-engine-proxy.sock" if proxy else None
    assert found["docker"].get("api_url") == url
    assert found["docker"]["lxcfs_folder"] == "/srv/lxcfs"
    assert found["DEFAULT"]["compute_driver"] == "docker.DockerDriver"
