# SPDX-License-Identifier: Apache-2.0
"""``deployment/kolla``, rendered by kolla and kolla-ansible; no image is built."""

import configparser
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
KOLLA = CHECKOUT / "deployment/kolla"
PROGRAMS = Path(sys.executable).parent

# Variables of the collection openstack.kolla, which is in no package index.
OF_THE_COLLECTION = {"docker_custom_config"}


def kolla_ansible() -> Path:
    """Return the directory of kolla-ansible's playbooks."""
    for file in metadata.files("kolla-ansible") or ():
        if str(file).endswith("share/kolla-ansible/ansible/site.yml"):
            return Path(str(file.locate())).resolve().parent
    raise FileNotFoundError("kolla-ansible has no playbooks")


@pytest.mark.parametrize(("base", "tag"), [("debian", "trixie"), ("rocky", "10")])
def test_kolla_renders_the_images(tmp_path: Path, base: str, tag: str) -> None:
    subprocess.run(
        [
            *(PROGRAMS / "kolla-build", "--template-only", "--engine", "docker"),
            *("--work-dir", tmp_path, "--base", base, "--base-tag", tag),
            *("--config-file", KOLLA / "kolla-build.conf"),
            *("--template-override", KOLLA / "template-override.j2", "nova-compute"),
        ],
        check=True,
        capture_output=True,
        timeout=300,
    )
    images = tmp_path / "docker/nova"
    compute = (images / "nova-compute/Dockerfile").read_text()
    (installed,) = re.findall(r"^.*\bgenisoimage\b.*$", compute, re.MULTILINE)
    assert {"gzip", "zstd", "xz" if base == "rocky" else "xz-utils"} <= set(installed.split())
    assert "import nova.virt.docker.driver" in compute
    # kolla installs the sources of plug-ins, and the archive of this one is for nova-base.
    base_image = (images / "nova-base/Dockerfile").read_text()
    assert "ADD plugins-archive /" in base_image
    assert re.search(r"pip .*install .*/plugins/\*", base_image)
    assert "nova.virt.docker" not in base_image


def test_the_source_has_the_form_of_kollas_plugins() -> None:
    sources = configparser.ConfigParser()
    sources.read(KOLLA / "kolla-build.conf")
    (section,) = sources.sections()
    assert section == "nova-base-plugin-novadocker"
    assert sources[section].keys() == {"type", "location", "reference"}


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((KOLLA / "globals.yml").read_text())
    return found


def known_variables() -> dict[str, Any]:
    """Return kolla-ansible's global variables and those of its role for compute hosts."""
    root = kolla_ansible()
    found: dict[str, Any] = {}
    for file in (*root.glob("group_vars/all/*.yml"), root / "roles/nova-cell/defaults/main.yml"):
        found |= yaml.safe_load(file.read_text()) or {}
    return found


def test_kolla_ansible_knows_the_variables(example: dict[str, Any]) -> None:
    own = {name for name in example if name.startswith("novadocker_")}
    assert example.keys() - own - OF_THE_COLLECTION <= known_variables().keys()
    theirs = known_variables()["docker_common_options"]
    ours = example["docker_common_options"]
    assert ours == theirs | {name: ours[name] for name in ("pid_mode", "cgroupns_mode")}


def rendered(tmp_path: Path, container: str) -> dict[str, Any]:
    """Return what a task of kolla-ansible gets for a container."""
    root = kolla_ansible()
    wanted = "{'options': docker_common_options, 'volumes': service.volumes}"
    files = [*sorted(root.glob("group_vars/all/*.yml")), root / "roles/nova-cell/defaults/main.yml"]
    playbook = [
        {
            "hosts": "localhost",
            "gather_facts": False,
            "vars_files": [*map(str, files), str(KOLLA / "globals.yml")],
            "vars": {
                "service": f"{{{{ nova_cell_services['{container}'] }}}}",
                "ansible_facts": {"hostname": "compute1"},
                "node_config": "/etc/kolla",
                # kolla-ansible reads it from passwords.yml.
                "docker_registry_password": "",
            },
            "tasks": [
                {
                    "name": "write",
                    "ansible.builtin.copy": {
                        "content": f"{{{{ {wanted} | to_json }}}}",
                        "dest": str(tmp_path / "rendered.json"),
                        "mode": "0644",
                    },
                }
            ],
        }
    ]
    file = tmp_path / "playbook.yml"
    file.write_text(yaml.safe_dump(playbook))
    done = subprocess.run(
        [
            *(PROGRAMS / "ansible-playbook", "--inventory", "localhost,", "--connection", "local"),
            *("--extra-vars", f"ansible_python_interpreter={sys.executable}"),
            file,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((tmp_path / "rendered.json").read_text())
    return found


def test_nova_compute_gets_the_namespaces_and_volumes(tmp_path: Path) -> None:
    found = rendered(tmp_path, "nova-compute")
    assert (found["options"]["pid_mode"], found["options"]["cgroupns_mode"]) == ("host", "host")
    targets = {volume.split(":")[1]: volume.split(":") for volume in found["volumes"] if volume}
    assert targets["/var/lib/docker"] == ["/var/lib/docker", "/var/lib/docker", "rslave"]
    assert targets["/var/lib/lxcfs"][2] == "rslave"
    # The sockets and the network namespaces, with mounts in both directions.
    assert targets["/run"] == ["/run", "/run", "shared"]
    # The state is on the host, since no libvirt shares a volume with nova-compute.
    assert targets["/var/lib/nova/"][0] == "/var/lib/nova"


def test_other_containers_keep_their_namespaces(tmp_path: Path) -> None:
    options = rendered(tmp_path, "nova-conductor")["options"]
    assert (options["pid_mode"], options["cgroupns_mode"]) == (None, None)


def test_the_group_of_the_proxy_is_that_of_kollas_images() -> None:
    from kolla.common import users

    host = yaml.safe_load((KOLLA / "host.yml").read_text())
    assert host["novadocker_proxy_group"] == str(users.USERS["nova-user"]["gid"])
    role = CHECKOUT / "deployment/ansible/roles/novadocker/defaults/main.yml"
    assert host.keys() <= yaml.safe_load(role.read_text()).keys()


def test_the_configuration_and_the_host_fit_together(example: dict[str, Any]) -> None:
    configuration = configparser.ConfigParser()
    configuration.read(KOLLA / "nova-compute.conf")
    assert configuration["DEFAULT"]["compute_driver"] == "docker.DockerDriver"
    socket = CHECKOUT / "etc/systemd/novadocker-engine-proxy.socket"
    url = configuration["docker"]["api_url"]
    assert f"ListenStream={url.removeprefix('unix://')}\n" in socket.read_text()
    host = yaml.safe_load((KOLLA / "host.yml").read_text())
    shim = example["docker_custom_config"]["runtimes"]["novadocker"]["path"]
    assert shim == f"{host['novadocker_virtualenv']}/bin/novadocker-runtime"
