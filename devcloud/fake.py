# SPDX-License-Identifier: Apache-2.0
"""A compute host with Nova's fake driver, for benchmarks, in its own availability zone."""

import time

from devcloud import database, supervise
from devcloud.clients import connect
from devcloud.programs import FAKE_COMPUTE
from devcloud.settings import Settings
from devcloud.steps import say, step, wait_until

HOST = "fake1"
ZONE = "fake"


def start(settings: Settings) -> None:
    """Start the fake compute host and enable it in the availability zone ``fake``.

    A server without an availability zone may be scheduled to this host while it is up, so name a
    zone for each server.
    """
    begin = time.time()
    supervise.start_programs(settings, [FAKE_COMPUTE])
    compute = connect(settings, "admin").compute

    def reports() -> bool:
        supervise.require_running(settings, FAKE_COMPUTE)
        return any(
            service.state == "up" for service in compute.services(host=HOST, binary="nova-compute")
        )

    with step("fake compute host"):
        wait_until(
            reports,
            what=f"{FAKE_COMPUTE} reports",
            advice=f"python3 -m devcloud ctl restart {FAKE_COMPUTE}",
            log=settings.log / f"{FAKE_COMPUTE}.log",
            interval=0.5,
        )
        nova = ("nova-manage", "--config-file", f"{settings.etc}/nova/nova.conf")
        database.manage(settings, "discover hosts", *nova, "cell_v2", "discover_hosts")
        aggregates = {aggregate.name: aggregate for aggregate in compute.aggregates()}
        aggregate = aggregates.get(ZONE) or compute.create_aggregate(
            name=ZONE, availability_zone=ZONE
        )
        if HOST not in (aggregate.hosts or []):
            compute.add_host_to_aggregate(aggregate, HOST)
        (service,) = compute.services(host=HOST, binary="nova-compute")
        if service.status == "disabled":
            compute.enable_service(service)
    say(f"servers with the availability zone {ZONE} boot there ({time.time() - begin:.0f} s)")


def stop(settings: Settings) -> None:
    """Disable the fake compute host, then stop it."""
    compute = connect(settings, "admin").compute
    for service in compute.services(host=HOST, binary="nova-compute"):
        compute.disable_service(service, disabled_reason="stopped by fake-host down")
    supervise.stop_programs(settings, [FAKE_COMPUTE])
