# SPDX-License-Identifier: Apache-2.0
"""The program that receives a server: what Nova says decides, whatever the other host sends."""

import os
import secrets
import subprocess
import sys
from pathlib import Path

from novadocker.virt.docker.migration import protocol
from tests import CHECKOUT

CONFIGURATION = """
[DEFAULT]
host = here
transport_url = fake:/
rpc_response_timeout = 2
instances_path = {folder}
state_path = {folder}
[docker]
api_url = {url}
[oslo_concurrency]
lock_path = {folder}
"""


def test_nothing_is_received_without_an_answer_of_nova(
    engine_url: str, tmp_path: Path, instance_uuid: str
) -> None:
    """No conductor answers at this message bus."""
    file = tmp_path / "nova.conf"
    file.write_text(CONFIGURATION.format(folder=tmp_path, url=engine_url))
    code = "import sys; from novadocker.cmd import receive; sys.exit(receive.main(sys.argv[1:]))"
    greeting = protocol.Greeting(instance_uuid, secrets.token_hex(16), f"sha256:{'1' * 64}")
    done = subprocess.run(
        [sys.executable, "-c", code, "--config-file", str(file)],
        input=protocol.encode(greeting),
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    answer = protocol.decode(done.stdout, protocol.Refused)
    assert "its Nova does not tell about the server" in answer.reason, done.stderr
    assert done.returncode == 1
