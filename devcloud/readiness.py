# SPDX-License-Identifier: Apache-2.0
"""Waiting until the services have reported to the APIs in this run, not only in an earlier one."""

import datetime

from openstack.connection import Connection

from devcloud import supervise, volumes
from devcloud.clients import connect
from devcloud.settings import Settings
from devcloud.steps import StepFailed, TimedOut, say, wait_until

READY_SECONDS = 300
"""The time that a program has to become ready; busy machines need minutes to start so many."""

CONTROL_SERVICES = ("nova-conductor", "nova-scheduler")

AGENTS = {
    "ovs": {"neutron-openvswitch-agent": "neutron-ovs"},
    "ovn": {"ovn-controller": "ovn-controller", "neutron-ovn-agent": "neutron-ovn"},
}
"""The programs of each host by the names of their binaries, for each kind of network."""

NETWORK_NODE_AGENTS = {
    "neutron-dhcp-agent": "neutron-dhcp",
    "neutron-l3-agent": "neutron-l3",
    "neutron-metadata-agent": "neutron-metadata",
}


def seconds(stamp: str | None) -> float:
    """Return an API's time stamp as seconds since 1970; without a time zone it is UTC."""
    if not stamp:
        return 0.0
    parsed = datetime.datetime.fromisoformat(stamp.replace("Z", ""))
    return parsed.replace(tzinfo=datetime.UTC).timestamp()


def expected_reports(settings: Settings) -> dict[tuple[str, str], str]:
    """Return the supervised program behind each (binary, host) that must report."""
    expected = {}
    for host in settings.hosts:
        expected["nova-compute", host.name] = f"nova-compute-{host.name}"
        agents = AGENTS[settings.network]
        if host.network_node and settings.network == "ovs":
            agents = agents | NETWORK_NODE_AGENTS
        for binary, program in agents.items():
            expected[binary, host.name] = f"{program}-{host.name}"
    if settings.volumes:
        expected |= {(name, host): name for name, host in volumes.REPORTS.items()}
    return expected


def fresh_reports(settings: Settings, connection: Connection, since: float) -> set[tuple[str, str]]:
    """Return the (binary, host) of each report since a time; a control service's host is empty."""
    # The APIs round their time stamps down to the second.
    fresh = {
        (agent.binary, agent.host)
        for agent in connection.network.agents()
        if agent.is_alive and seconds(agent.last_heartbeat_at) >= int(since)
    }
    for service in connection.compute.services():
        if service.state == "up" and seconds(service.updated_at) >= int(since):
            control = service.binary in CONTROL_SERVICES
            fresh.add((service.binary, "" if control else service.host))
    if settings.volumes:
        fresh |= {
            (service.binary, service.host)
            for service in connection.block_storage.services()
            if service.state == "up" and seconds(service.updated_at) >= int(since)
        }
    return fresh


def wait_for_reports(settings: Settings, since: float) -> None:
    """Wait until every agent, conductor, scheduler and nova-compute has reported.

    :param since: seconds since 1970; older reports do not count.
    :raises StepFailed: a service does not report within ``READY_SECONDS``.
    """
    connection = connect(settings, "admin")
    expected = expected_reports(settings) | {(name, ""): name for name in CONTROL_SERVICES}
    missing = set(expected)

    def all_reported() -> bool:
        nonlocal missing
        for program in expected.values():
            supervise.require_running(settings, program)
        late = set(expected) - fresh_reports(settings, connection, since)
        for reported in sorted(missing - late):
            say(f"  {expected[reported]}")
        missing = late
        return not missing

    try:
        wait_until(all_reported, what="reports", advice="", timeout=READY_SECONDS, interval=0.5)
    except TimedOut as failure:
        program = expected[min(missing)]
        raise StepFailed(
            f"{program} did not report to the API",
            f"fix the cause, then: python3 -m devcloud ctl restart {program}",
            settings.log / f"{program}.log",
        ) from failure
