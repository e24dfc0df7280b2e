# SPDX-License-Identifier: Apache-2.0
"""An engine that is away, and a container that an operator deletes in the engine."""

import contextlib
import time
from pathlib import Path

import pytest
from openstack.compute.v2.service import Service
from openstack.connection import Connection

from devcloud import supervise
from devcloud.settings import Settings
from tests.cloud.guests import until
from tests.cloud.owners import ask_placement, engine_of, provider_of
from tests.cloud.servers import Servers, address, fault, pings

_SECONDS = 30
_SERVERS = 6
# [DEFAULT] update_resources_interval and most other intervals of nova-compute
_PERIOD_SECONDS = 65


def reserved(admin: Connection, host: str) -> int:
    """Return the number of a host's CPUs that Placement gives to no server."""
    path = f"/resource_providers/{provider_of(admin, host)}/inventories"
    return int(ask_placement(admin, path)["inventories"]["VCPU"]["reserved"])


def test_a_deleted_container(cloud: Settings, servers: Servers, tenant_network: str) -> None:
    server = servers.create("lost")
    assert server.status == "ACTIVE", fault(server)
    with contextlib.closing(engine_of(cloud, cloud.hosts[0])) as engine:
        engine.remove_container(f"nova-{server.id}", force=True, v=True)
    servers.wait(server, lambda now: now.status == "SHUTOFF", _SECONDS)
    compute = servers.connection.compute
    compute.reboot_server(server, "HARD")
    server = servers.wait(server, lambda now: now.status == "ERROR", _SECONDS)
    assert "files of the server are lost" in fault(server)
    compute.rebuild_server(server, image=server.image.id)
    server = servers.wait(server, lambda now: now.status == "ACTIVE", _SECONDS)
    until(lambda: pings(tenant_network, address(server)))


def test_a_service_without_its_engine(cloud: Settings, admin: Connection) -> None:
    host = cloud.hosts[0].name

    def service() -> Service:
        (found,) = admin.compute.services(binary="nova-compute", host=host)
        return found

    log = cloud.log / f"nova-compute-{host}.log"
    begin = log.stat().st_size
    assert service().status == "enabled"
    supervise.control(cloud, ["stop", f"docker-{host}"])
    try:
        until(lambda: service().status == "disabled", _SECONDS)
        assert str(service().disabled_reason).startswith("AUTO: the Docker engine")
    finally:
        supervise.control(cloud, ["start", f"docker-{host}"])
    until(lambda: service().status == "enabled", _SECONDS)
    # Other tests create servers, for which Placement needs the next report of the resources.
    until(lambda: reserved(admin, host) == 0, _SECONDS)
    check_log(log, begin)


def check_log(log: Path, begin: int) -> None:
    """Check that a log has no error since a position, and a line for each end of an outage."""
    with log.open() as lines:
        lines.seek(begin)
        told = [line for line in lines if " ERROR " in line or " WARNING " in line]
    assert [line for line in told if " ERROR " in line] == []
    assert len([line for line in told if "engine" in line]) == 2, told


@pytest.mark.usefixtures("long_run")
def test_the_log_of_an_outage_on_a_host_with_servers(
    cloud: Settings, servers: Servers, admin: Connection
) -> None:
    """Each periodic task of nova-compute runs at least once without the engine."""
    host = cloud.hosts[0].name
    idle = [servers.create(f"idle-{number}") for number in range(_SERVERS)]
    assert {server.status for server in idle} == {"ACTIVE"}, [fault(server) for server in idle]
    log = cloud.log / f"nova-compute-{host}.log"
    begin = log.stat().st_size
    supervise.control(cloud, ["stop", f"docker-{host}"])
    try:
        time.sleep(_PERIOD_SECONDS)
    finally:
        supervise.control(cloud, ["start", f"docker-{host}"])
    until(lambda: reserved(admin, host) == 0, 2 * _PERIOD_SECONDS)
    now = [servers.connection.compute.get_server(server.id).status for server in idle]
    assert set(now) == {"ACTIVE"}
    check_log(log, begin)
