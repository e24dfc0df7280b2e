# SPDX-License-Identifier: Apache-2.0
"""nova-compute is killed during a task that Nova does not end; then the server is usable again."""

import os
import signal

import pytest
from openstack.connection import Connection

from devcloud import supervise
from devcloud.settings import Settings
from tests.cloud.guests import until
from tests.cloud.owners import engine_of
from tests.cloud.servers import Servers, fault, last_events

BEGUN = "compute_pause_instance"

pytestmark = pytest.mark.usefixtures("long_run")


def test_interrupted_pause(
    cloud: Settings, servers: Servers, demo: Connection, admin: Connection
) -> None:
    server = servers.create("paused")
    assert server.status == "ACTIVE", fault(server)
    host = cloud.hosts[0]
    engine, compute = (
        supervise.process_id(cloud, f"{name}-{host.name}") for name in ("docker", "nova-compute")
    )
    os.kill(engine, signal.SIGSTOP)
    try:
        demo.compute.pause_server(server)
        until(lambda: [event["event"] for event in last_events(admin, server)] == [BEGUN])
        os.kill(compute, signal.SIGKILL)
    finally:
        os.kill(engine, signal.SIGCONT)
    # The engine may carry out the request of the killed nova-compute.
    server = servers.wait(server, lambda now: now.status in ("ACTIVE", "PAUSED"))
    client = engine_of(cloud, host)
    paused = client.inspect_container(f"nova-{server.id}")["State"]["Paused"]
    client.close()
    assert paused == (server.status == "PAUSED")
    demo.compute.reboot_server(server, "HARD")
    servers.wait(server, lambda now: now.status == "ACTIVE")
