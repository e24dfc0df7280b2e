# SPDX-License-Identifier: Apache-2.0
"""The Ansible role, as far as it runs without a host: no test applies the whole role."""

import configparser
import os
import re
import subprocess
import sys
import zipfile
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


def play(*arguments: str | Path, programs: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(PLAYBOOK, "--inventory", "localhost,", "--connection", "local"),
            *("--extra-vars", f"ansible_python_interpreter={sys.executable}", *arguments),
        ],
        cwd=ANSIBLE,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"} if programs else None,
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
    named = set(re.findall(r"notify: (\w.*)|^    - (?=Stop|Restart)(.*)", text, re.MULTILINE))
    notified = {one or other for one, other in named}
    assert notified <= handlers
    # The drop-ins have handlers by name: the engine's and that of lxcfs.
    with_names = handlers - {handler["name"] for handler in listed if "listen" in handler}
    assert with_names == notified | {"Restart the engine", "Restart lxcfs"}


def test_the_engine_knows_live_restore_before_it_restarts() -> None:
    """Otherwise the restart stops all containers."""
    listed = yaml.safe_load((ROLE / "handlers/main.yml").read_text())
    about_engine = [
        handler
        for handler in listed
        if "Restart the engine" in (handler["name"], handler.get("listen"))
    ]
    reload, wait, restart = about_engine
    assert reload["ansible.builtin.systemd_service"]["state"] == "reloaded"
    assert "LiveRestoreEnabled" in wait["until"]
    assert restart["ansible.builtin.systemd_service"]["state"] == "restarted"


def test_a_new_package_restarts_the_proxy_first() -> None:
    """The proxy passes the requests of its own release only, to containers of kolla, too."""
    listed = yaml.safe_load((ROLE / "handlers/main.yml").read_text())
    named = [handler["name"] for handler in listed]
    assert named.index("Stop the proxy") < named.index("Restart nova-compute")
    (stop,) = (handler for handler in listed if handler["name"] == "Stop the proxy")
    assert stop["when"] == "novadocker_proxy"
    tasks = yaml.safe_load((ROLE / "tasks/package.yml").read_text())
    assert tasks[-1]["notify"] == ["Stop the proxy", "Restart nova-compute"]


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


def write_wheel(folder: Path, name: str, content: str, needs: str = "") -> Path:
    """Write a wheel of one module, always of the same version."""
    wheel = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    files = {
        f"{name}.py": content,
        f"{info}/METADATA": metadata + (f"Requires-Dist: {needs}\n" if needs else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def tasks_of(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((ROLE / f"tasks/{name}.yml").read_text())
    return found


def write_play(file: Path, tasks: list[dict[str, Any]], **variables: Any) -> Path:
    """Write a playbook of tasks of the role, whose handlers print their names."""
    notified = [
        {"name": name, "ansible.builtin.debug": {"msg": name}}
        for name in ("Stop the proxy", "Restart nova-compute")
    ]
    of_role = {
        **defaults(),
        **yaml.safe_load((ROLE / "vars/main.yml").read_text()),
        **variables,
    }
    playbook = {
        "hosts": "localhost",
        "gather_facts": False,
        "vars": of_role,
        "tasks": tasks,
        "handlers": notified,
    }
    file.write_text(yaml.safe_dump([playbook]))
    return file


def installed(environment: Path, module: str) -> str:
    command = [environment / "bin/python", "-I", "-c", f"import {module}; print({module}.STATE)"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def test_a_wheel_is_installed_until_that_succeeds(tmp_path: Path) -> None:
    """A new wheel of the same version replaces the old one, with its new dependencies."""
    wheels, environment = tmp_path / "wheels", tmp_path / "environment"
    wheels.mkdir()
    (record,) = (task for task in tasks_of("main") if task["name"] == "Record what is installed")
    playbook = write_play(
        tmp_path / "playbook.yml",
        [*tasks_of("package"), record],
        novadocker_wheel=str(wheels / "novadocker-1.0-py3-none-any.whl"),
        novadocker_virtualenv=str(environment),
        novadocker_cache=str(tmp_path / "cache"),
        novadocker_pip_arguments=f"--no-index --find-links={wheels}",
    )

    write_wheel(wheels, "novadocker", "STATE = 'old'")
    first = play(playbook)
    assert first.returncode == 0, first.stdout + first.stderr
    assert installed(environment, "novadocker") == "old"
    again = play(playbook)
    assert "changed=0" in again.stdout
    assert "Restart nova-compute" not in again.stdout

    write_wheel(wheels, "novadocker", "STATE = 'new'", needs="needed")
    assert play(playbook).returncode != 0
    assert installed(environment, "novadocker") == "old"

    write_wheel(wheels, "needed", "STATE = 'here'")
    mended = play(playbook)
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert installed(environment, "novadocker") == "new"
    assert installed(environment, "needed") == "here"
    for handler in ("Stop the proxy", "Restart nova-compute"):
        assert f"RUNNING HANDLER [{handler}]" in mended.stdout


@pytest.mark.parametrize(
    ("members", "removed"), [("stack,nova", True), ("stack,nova2", False), ("", False)]
)
def test_with_the_proxy_nova_leaves_the_group_of_the_engine(
    tmp_path: Path, members: str, removed: bool
) -> None:
    calls = tmp_path / "calls"
    programs = {"getent": f"echo docker:x:999:{members}", "gpasswd": f'echo "$*" > {calls}'}
    for name, command in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{command}\n")
        (tmp_path / name).chmod(0o755)
    about_group = tasks_of("compute")[:3]
    playbook = write_play(tmp_path / "playbook.yml", about_group, novadocker_proxy=True)
    done = play(playbook, programs=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert calls.exists() is removed
    if removed:
        assert calls.read_text() == "--delete nova docker\n"
    assert ("RUNNING HANDLER [Restart nova-compute]" in done.stdout) is removed


def test_the_packages_have_what_the_module_of_pip_needs() -> None:
    kolla = yaml.safe_load((CHECKOUT / "deployment/kolla/host.yml").read_text())
    for packages in (defaults()["novadocker_packages"], kolla["novadocker_packages"]):
        assert "python3-packaging" in packages
    assert "python3-venv" in kolla["novadocker_packages"]
    pip = tasks_of("package")[-1]["module_defaults"]["ansible.builtin.pip"]
    assert pip["virtualenv_command"] == "python3 -m venv"
