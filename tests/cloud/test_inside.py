# SPDX-License-Identifier: Apache-2.0
"""The files that a tenant finds in a server, through the public API and SSH."""

import base64
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openstack.connection import Connection

from devcloud.demo import fixed_address, ssh
from devcloud.images import archive_path
from devcloud.network import inside
from devcloud.settings import Settings
from tests.cloud import leaks
from tests.cloud.guests import Guest
from tests.cloud.owners import engine_of
from tests.cloud.servers import Servers, fault

USER_DATA = bytes(range(256)) * 191


@pytest.fixture(scope="module")
def seen(cloud: Settings) -> Iterator[Any]:
    """Yield a function that reads a file of a server as the server's processes see it."""
    client = engine_of(cloud, cloud.hosts[0])

    def read(server: Any, path: str) -> bytes:
        pid = client.inspect_container(f"nova-{server.id}")["State"]["Pid"]
        return Path(f"/proc/{pid}/root{path}").read_bytes()

    yield read
    client.close()


def test_what_a_tenant_finds(
    admin: Connection,
    servers: Servers,
    demo: Connection,
    image: Any,
    busybox: Path,
    seen: Any,
    cloud: Settings,
) -> None:
    """The image has no cloud-init, no sshd and no home directory of its user."""
    name = image(busybox, os_admin_user="root", img_config_drive_device="true")
    server = servers.create(
        "inside-1",
        image=name,
        key_name="demo",
        config_drive=True,
        user_data=base64.b64encode(USER_DATA).decode(),
        metadata={"role": "web"},
    )
    assert server.status == "ACTIVE", fault(server)
    key = demo.compute.get_keypair("demo").public_key.strip()
    assert key in seen(server, "/root/.ssh/authorized_keys").decode()
    assert seen(server, "/etc/machine-id").decode().strip() == server.id.replace("-", "")
    for folder in ("/config-2", "/var/lib/cloud/seed/config_drive"):
        metadata = json.loads(seen(server, f"{folder}/openstack/latest/meta_data.json"))
        assert metadata["uuid"] == server.id
        assert metadata["meta"] == {"role": "web"}
        assert seen(server, f"{folder}/openstack/latest/user_data") == USER_DATA
    # The volume identifier of ISO 9660.
    assert seen(server, "/dev/disk/by-label/config-2")[32808:32816] == b"config-2"
    first = seen(server, "/etc/shadow").decode()
    assert first.startswith("root:$6$")

    demo.compute.change_server_password(server, "other than before")
    changed = seen(server, "/etc/shadow").decode()
    assert changed.startswith("root:$6$")
    assert changed != first
    log = (cloud.log / "nova-compute-host1.log").read_text()
    assert "other than before" not in log

    demo.compute.rebuild_server(
        server, image=demo.image.find_image(name).id, name="renamed", admin_password="p"
    )
    server = servers.wait(server, lambda s: s.status == "ACTIVE")
    assert key in seen(server, "/root/.ssh/authorized_keys").decode()
    assert seen(server, "/etc/machine-id").decode().strip() == server.id.replace("-", "")
    assert seen(server, "/etc/shadow").decode() not in (first, changed)
    metadata = json.loads(seen(server, "/config-2/openstack/latest/meta_data.json"))
    assert metadata["name"] == "renamed"
    before = leaks.inventory(cloud, admin)["loop devices"]
    demo.compute.stop_server(server)
    servers.wait(server, lambda s: s.status == "SHUTOFF")
    assert before - leaks.inventory(cloud, admin)["loop devices"]
    demo.compute.start_server(server)
    server = servers.wait(server, lambda s: s.status == "ACTIVE")
    assert seen(server, "/dev/disk/by-label/config-2")[32808:32816] == b"config-2"


def test_a_login_by_the_injected_key_and_no_other(
    servers: Servers, image: Any, cloud: Settings, tenant_network: str, tmp_path: Path
) -> None:
    """The image has no key, and its command fetches none; the server sees its own memory."""
    command = "sh -c 'mkdir -p /run/sshd; ssh-keygen -A; exec /usr/sbin/sshd -D -e'"
    name = image(archive_path(cloud, "debian"), os_admin_user="debian", os_command_line=command)
    server = servers.create("login-1", image=name, flavor="d1.small", key_name="demo")
    assert server.status == "ACTIVE", fault(server)
    guest = Guest(cloud, server, tenant_network)
    guest.wait()
    assert guest.ask("whoami") == "debian\n"
    another = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-f", another], check=True)
    login = ssh(cloud, fixed_address(server))
    login[login.index("-i") + 1] = str(another)
    refused = subprocess.run(
        inside(tenant_network, [*login, "whoami"]), capture_output=True, timeout=30, check=False
    )
    assert b"Permission denied (publickey" in refused.stderr
    # The first number of the line "Mem:" is the total.
    assert guest.ask("free -m").split("Mem:")[1].split()[0] == "512"
    # In an idle server, only the process that reads the load average is running.
    assert float(guest.ask("cat /proc/loadavg").split()[0]) < 1.0
    assert int(guest.ask("nproc")) == len(os.sched_getaffinity(0))


def test_a_server_without_the_user_of_its_image_property(
    servers: Servers, image: Any, busybox: Path
) -> None:
    server = servers.create(
        "nobody", image=image(busybox, os_admin_user="nobody-here"), key_name="demo"
    )
    assert server.status == "ERROR"
    assert "has no user nobody-here" in fault(server)
