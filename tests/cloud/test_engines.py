# SPDX-License-Identifier: Apache-2.0
"""An engine that is away, and a container that an operator deletes in the engine."""

import contextlib

from openstack.compute.v2.service import Service
from openstack.connection import Connection

from devcloud import supervise
from devcloud.settings import Settings
from tests.cloud.guests import until
from tests.cloud.owners import ask_placement, engine_of, provider_of
from tests.cloud.servers import Servers, address, fault, pings

_SECONDS = 30


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
    with log.open() as lines:
        lines.seek(begin)
        told = [line for line in lines if " ERROR " in line or " WARNING " in line]
    assert [line for line in told if " ERROR " in line] == []
    assert len([line for line in told if "engine" in line]) == 2, told
