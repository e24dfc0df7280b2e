# SPDX-License-Identifier: Apache-2.0
"""Commands in a server of the image ``debian``, over SSH as its tenant."""

import subprocess
from collections.abc import Callable
from typing import Any

from openstack.compute.v2.server import Server

from devcloud.demo import fixed_address, ssh
from devcloud.network import inside
from devcloud.settings import Settings
from tests import waiting

SETTLE_SECONDS = 60


class Guest:
    """Runs commands in a server.

    :ivar namespace: the network namespace that reaches the server's address
    :ivar network: the name of the network of that address
    """

    def __init__(
        self, settings: Settings, server: Server, namespace: str, network: str = "private"
    ) -> None:
        self.settings, self.server, self.namespace = settings, server, namespace
        self.network = network

    def run(self, command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        address = fixed_address(self.server, self.network)
        return subprocess.run(
            inside(self.namespace, [*ssh(self.settings, address), command]),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=SETTLE_SECONDS,
        )

    def ask(self, command: str, stdin: str = "") -> str:
        """Return the output of a command, which must succeed."""
        done = self.run(command, stdin)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def wait(self) -> None:
        """Wait until the server accepts a login."""
        until(lambda: self.run("true").returncode == 0)


def until(holds: Callable[[], Any], seconds: float = SETTLE_SECONDS) -> Any:
    """Poll until the answer is true; return it. Neutron's agents apply changes within seconds."""
    return waiting.until(holds, seconds, interval=0.3)
