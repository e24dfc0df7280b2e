# SPDX-License-Identifier: Apache-2.0
"""A host deletes all of the servers that were deleted in Nova during its outage, and no more."""

import contextlib
from collections.abc import Iterator

import pytest
from openstack.connection import Connection

from devcloud import supervise
from devcloud.settings import Settings
from tests.cloud import leaks
from tests.cloud.guests import until
from tests.cloud.owners import engine_of
from tests.cloud.servers import Servers, fault

pytestmark = pytest.mark.usefixtures("long_run")

FOREIGN = "somebody-elses"


@contextlib.contextmanager
def away(cloud: Settings, admin: Connection, host: str) -> Iterator[None]:
    """Stop a host's nova-compute during the body, forced down in Nova."""
    (service,) = admin.compute.services(binary="nova-compute", host=host)
    supervise.control(cloud, ["stop", f"nova-compute-{host}"])
    try:
        admin.compute.update_service_forced_down(service, forced=True)
        yield
    finally:
        admin.compute.update_service_forced_down(service, forced=False)
        supervise.control(cloud, ["start", f"nova-compute-{host}"])


def test_only_what_nova_deleted_is_reaped(
    cloud: Settings, servers: Servers, admin: Connection
) -> None:
    stays = servers.create("stays")
    before = leaks.inventory(cloud, admin)
    server, bare = servers.create("deleted"), servers.create("bare", config_drive=True)
    for made in (server, stays, bare):
        assert made.status == "ACTIVE", fault(made)
    name = f"nova-{server.id}"
    with contextlib.closing(engine_of(cloud, cloud.hosts[0])) as engine:

        def running() -> set[str]:
            return {found["Names"][0].lstrip("/") for found in engine.containers()}

        found = engine.inspect_container(name)
        # This container has all labels of the server.
        engine.create_container(
            found["Image"], ["sleep", "1d"], labels=found["Config"]["Labels"], name=FOREIGN
        )
        try:
            engine.start(FOREIGN)
            with away(cloud, admin, cloud.hosts[0].name):
                # An operator deletes the container. The network and the config drive stay.
                engine.remove_container(f"nova-{bare.id}", force=True)
                servers.delete(server)
                servers.delete(bare)
                assert name in running()
            until(lambda: name not in running(), 120)
            assert {FOREIGN, f"nova-{stays.id}"} <= running()
        finally:
            engine.remove_container(FOREIGN, force=True)
    assert leaks.leaked_for_good(cloud, admin, before) == {}
