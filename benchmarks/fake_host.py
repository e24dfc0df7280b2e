# SPDX-License-Identifier: Apache-2.0
"""A compute host with Nova's fake driver, for whose servers Neutron binds ports."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator

from benchmarks import helper
from devcloud import fake
from devcloud.clients import connect
from devcloud.settings import CHECKOUT, Settings

_AGENT_TYPE = "Open vSwitch agent"


@contextlib.contextmanager
def started(settings: Settings) -> Iterator[None]:
    """Run the fake compute host and its agent's reports while the body runs."""
    host = settings.hosts[0]
    command = [sys.executable, "-m", "devcloud", "fake-host"]
    with connect(settings, "admin") as admin, contextlib.ExitStack() as stack:
        (real,) = admin.network.agents(host=host.name, agent_type=_AGENT_TYPE)
        # Neutron deletes the tunnels to an agent's address with the agent, so this one has no
        # address.
        configuration = {**real.configuration, "tunneling_ip": None}
        stack.callback(_forget_agent, settings)
        stack.enter_context(
            helper.started(
                settings,
                host,
                "benchmarks.agent_reports",
                *("--config-file", settings.host_etc(host) / "neutron.conf"),
                *("--host", fake.HOST),
                *("--configuration", json.dumps(configuration)),
            )
        )
        stack.callback(subprocess.run, [*command, "down"], cwd=CHECKOUT, check=True)
        subprocess.run([*command, "up"], cwd=CHECKOUT, check=True)
        yield


def _forget_agent(settings: Settings) -> None:
    with connect(settings, "admin") as admin:
        for agent in admin.network.agents(host=fake.HOST, agent_type=_AGENT_TYPE):
            admin.network.delete_agent(agent)
