# SPDX-License-Identifier: Apache-2.0
"""cloud-init of Debian decides in a server, by its own rules, whether it runs."""

import io
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from tests.engine.hosts import ComputeHost

DS_IDENTIFY = "usr/lib/cloud-init/ds-identify"


@pytest.fixture(scope="session")
def ds_identify(home_network: str) -> bytes:
    """Return the program that detects the data source, from Debian's package."""
    with tempfile.TemporaryDirectory() as folder:
        # apt's own user must be able to write the package.
        Path(folder).chmod(0o777)
        # The machine may have deleted the lists of packages since its packages were installed.
        for words in (["update"], ["download", "cloud-init"]):
            command = ["nsenter", f"--net={home_network}", "apt-get", "-qq", *words]
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
        (package,) = Path(folder).glob("*.deb")
        files = subprocess.run(
            ["dpkg-deb", "--fsys-tarfile", package], check=True, capture_output=True
        ).stdout
    with tarfile.open(fileobj=io.BytesIO(files)) as archive:
        program = archive.extractfile(f"./{DS_IDENTIFY}")
        assert program is not None
        return program.read()


def test_cloud_init_finds_openstack_without_a_config_drive(
    compute_host: ComputeHost, ds_identify: bytes
) -> None:
    nova = compute_host.start_nova()
    server = nova.spawn(compute_host.new_server())
    client = compute_host.client
    try:
        command = ["sh", "-c", ds_identify.decode(), f"/{DS_IDENTIFY}", "--force"]
        call = client.exec_create(server.name, command)["Id"]
        output = client.exec_start(call).decode()
        assert client.exec_inspect(call)["ExitCode"] == 0, output
        call = client.exec_create(server.name, ["cat", "/run/cloud-init/cloud.cfg"])["Id"]
        assert "datasource_list: [ OpenStack, None ]" in client.exec_start(call).decode()
    finally:
        nova.destroy(server)
        nova.stop()
