# SPDX-License-Identifier: Apache-2.0
"""nova-compute's privileges, the protection of its files, and secrets in logs."""

import base64
import secrets
import stat
from pathlib import Path
from typing import Any

from openstack.connection import Connection

from devcloud import supervise
from devcloud.settings import COMPUTE_USER, Settings
from tests.cloud.servers import Servers, fault


def test_nova_compute_has_no_privilege(cloud: Settings) -> None:
    for host in cloud.hosts:
        pid = supervise.process_id(cloud, f"nova-compute-{host.name}")
        process = Path(f"/proc/{pid}")
        assert process.owner() == COMPUTE_USER != "root"
        status = dict(
            line.split(":\t", 1) for line in (process / "status").read_text().splitlines()
        )
        assert {name: int(status[name], 16) for name in ("CapEff", "CapPrm", "CapAmb")} == {
            "CapEff": 0,
            "CapPrm": 0,
            "CapAmb": 0,
        }


def test_what_is_its_is_closed_to_others(cloud: Settings) -> None:
    for host in cloud.hosts:
        assert not cloud.engine_socket(host).stat().st_mode & stat.S_IRWXO
        state = cloud.host_data(host) / "nova"
        open_to_others = [
            path
            for path in (state, *state.rglob("*"))
            if not path.is_symlink() and path.lstat().st_mode & stat.S_IWOTH
        ]
        assert open_to_others == []


def test_secrets_are_in_no_log(
    cloud: Settings, servers: Servers, demo: Connection, image: Any, busybox: Path
) -> None:
    kept = {
        log: log.stat().st_size
        for log in cloud.log.iterdir()
        if log.name.startswith(("nova-compute", "docker", "benchmarks"))
    }
    first, second, data = (secrets.token_hex(16) for _ in range(3))
    server = servers.create(
        "secret",
        image=image(busybox, os_admin_user="root"),
        admin_password=first,
        config_drive=True,
        user_data=base64.b64encode(data.encode()).decode(),
    )
    assert server.status == "ACTIVE", fault(server)
    demo.compute.change_server_password(server, second)
    servers.wait(server, lambda now: now.status == "ACTIVE")
    servers.delete_all()
    written = 0
    for log, size in kept.items():
        with log.open("rb") as lines:
            lines.seek(size)
            text = lines.read()
        written += len(text)
        for secret in (first, second, data):
            assert secret.encode() not in text, log
            assert base64.b64encode(secret.encode()) not in text, log
    assert written, "the services logged nothing"
