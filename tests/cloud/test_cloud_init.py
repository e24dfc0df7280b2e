# SPDX-License-Identifier: Apache-2.0
"""Debian with systemd and cloud-init, otherwise unchanged, as a cloud image has them."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from devcloud.archive import build_archive
from devcloud.images import SUITE
from tests.cloud.servers import Servers, fault

BUILD_SECONDS = 1200
BOOT_SECONDS = 300
# The image has no other locale.
USER_DATA = """#cloud-config
locale: C.UTF-8
write_files:
- path: /written
  content: by user data
"""


@pytest.fixture(scope="module")
def archive(long_run: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the image, in a minute or two."""
    folder = tmp_path_factory.mktemp("cloud-init")
    root = folder / "root"
    packages = "systemd-sysv,dbus,cloud-init,openssh-server,sudo"
    subprocess.run(
        ["mmdebstrap", "--mode=root", "--variant=minbase", f"--include={packages}", SUITE, root],
        check=True,
        capture_output=True,
        timeout=BUILD_SECONDS,
    )
    (root / "etc/machine-id").write_text("")
    target = folder / "image.tar"
    build_archive(root, target, command=("/sbin/init",))
    return target


def test_user_data_from_the_metadata_service(
    archive: Path, servers: Servers, image: Any, engine: Any
) -> None:
    server = servers.create(
        "cloud-init",
        image=image(archive),
        flavor="d1.small",
        key_name="demo",
        user_data=base64.b64encode(USER_DATA.encode()).decode(),
    )
    assert server.status == "ACTIVE", fault(server)

    def inside(*command: str) -> str:
        call = engine.exec_create(f"nova-{server.id}", ["timeout", str(BOOT_SECONDS), *command])
        output: bytes = engine.exec_start(call["Id"])
        return output.decode()

    inside("cloud-init", "status", "--wait")
    assert inside("cat", "/written") == "by user data"
    result = json.loads(inside("cat", "/var/lib/cloud/data/result.json"))["v1"]
    assert "DataSourceOpenStack" in result["datasource"]
    assert result["errors"] == []
