# SPDX-License-Identifier: Apache-2.0
"""Flavors with their own limits, and CPUs that Nova dedicates to one server."""

import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openstack import exceptions
from openstack.connection import Connection

from devcloud import supervise
from devcloud.images import archive_path
from devcloud.settings import Settings
from tests.cloud.guests import until
from tests.cloud.owners import ask_placement, engine_of
from tests.cloud.servers import Servers, fault

SETTLE_SECONDS = 90
# CPU 0 is shared, CPU 1 is dedicated.
DIVISION = "\n[compute]\ncpu_shared_set = 0\ncpu_dedicated_set = 1\n"
LIMITED = {
    "hw:cpu_policy": "dedicated",
    "quota:cpu_shares": "512",
    "docker:pids_limit": "50",
    "docker:ulimit_nofile": "300:400",
    "docker:shm_size_mb": "5",
    "docker:oom_score_adj": "100",
}
# Allocates memory until the kernel kills the process, once.
HOG = "sh -c 'tail /dev/zero; echo survived; exec sleep 1000'"

Flavor = Callable[..., str]


@pytest.fixture(scope="module")
def flavor(admin: Connection) -> Iterator[Flavor]:
    """Yield a function that creates a flavor with extra specs; delete the flavors at the end."""
    made = []

    def make(**specs: str) -> str:
        name = f"test-{uuid.uuid4().hex[:8]}"
        made.append(admin.compute.create_flavor(name=name, vcpus=1, ram=64, disk=1))
        admin.compute.create_flavor_extra_specs(made[-1], specs)
        return name

    yield make
    for found in made:
        admin.compute.delete_flavor(found)


@pytest.fixture
def divided_host(cloud: Settings, admin: Connection) -> Iterator[None]:
    """Divide the first host's CPUs into shared and dedicated ones until the end of the test."""
    host = cloud.hosts[0]
    path = cloud.host_etc(host) / "nova-compute.conf"
    content = path.read_text()

    def configure(text: str, pcpus: bool) -> None:
        path.write_text(text)
        supervise.control(cloud, ["restart", f"nova-compute-{host.name}"])
        (found,) = [row for row in admin.compute.hypervisors() if row.name == host.name]
        url = f"/resource_providers/{found.id}/inventories"
        # nova-compute's old service record is still up, so only Placement shows the end of its
        # start.
        until(lambda: ("PCPU" in ask_placement(admin, url)["inventories"]) is pcpus, SETTLE_SECONDS)

    configure(content + DIVISION, True)
    yield
    configure(content, False)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("docker:pids_limit", "9", "less than the min value of '16'"),
        ("docker:no_such", "1", "does not appear to be a valid extra spec"),
        ("docker:ulimit_nofile", "2:1", "the soft limit exceeds the hard limit"),
        ("docker:capabilities", "SYS_MODULE", "'SYS_MODULE' is not allowed"),
    ],
)
def test_a_wrong_extra_spec_is_refused(
    admin: Connection, flavor: Flavor, name: str, value: str, words: str
) -> None:
    found = admin.compute.find_flavor(flavor(), ignore_missing=False)

    def put(specs: dict[str, str]) -> None:
        answer = admin.compute.post(
            f"/flavors/{found.id}/os-extra_specs", json={"extra_specs": specs}, microversion="2.86"
        )
        exceptions.raise_from_response(answer)

    put({"docker:pids_limit": "16"})
    with pytest.raises(exceptions.BadRequestException, match=re.escape(words)):
        put({name: value})


def test_an_extra_spec_that_nobody_checked_fails_the_boot(servers: Servers, flavor: Flavor) -> None:
    server = servers.create("unchecked", flavor=flavor(**{"docker:pids_limit": "9"}))
    assert server.status == "ERROR"
    assert "docker:pids_limit: 9 is not between 16 and 4194304" in fault(server)


def test_horizon_knows_the_extra_specs(admin: Connection) -> None:
    answer = admin.image.get("/metadefs/namespaces/OS::Compute::Docker")
    exceptions.raise_from_response(answer)
    assert "docker:" in {row["prefix"] for row in answer.json()["resource_type_associations"]}


@pytest.mark.usefixtures("divided_host")
def test_a_server_with_a_cpu_of_its_own(
    cloud: Settings, admin: Connection, servers: Servers, flavor: Flavor, image: Any
) -> None:
    own = flavor(**LIMITED)
    hog = image(archive_path(cloud, "busybox"), os_command_line=HOG)
    server = servers.create("own", flavor=own, image=hog)
    assert server.status == "ACTIVE", fault(server)
    client = engine_of(cloud, cloud.hosts[0])

    def pid_of(name: str) -> int:
        return int(client.inspect_container(f"nova-{name}")["State"]["Pid"])

    pid = pid_of(server.id)
    assert allowed_cpus(pid) == "1"
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"Max open files +300 +400 ", limits)
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "100\n"
    assert "size=5120k" in Path(f"/proc/{pid}/mounts").read_text()

    # The only dedicated CPU is in use.
    second = servers.create("second", flavor=own)
    assert second.status == "ERROR"
    assert re.search("No valid host|Exhausted all hosts", fault(second)), fault(second)
    shared = servers.create("shared")
    assert shared.status == "ACTIVE", fault(shared)
    assert allowed_cpus(pid_of(shared.id)) == "0"
    client.close()

    # By now, the server has run out of memory once and continues to run.
    assert until(lambda: diagnostics(admin, server.id)["oom_kills"], SETTLE_SECONDS) == 1
    log = (cloud.log / f"nova-compute-{cloud.hosts[0].name}.log").read_text(errors="replace")
    assert f"[instance: {server.id}] The kernel killed a process" in log
    servers.delete_all()


def allowed_cpus(pid: int) -> str:
    found = re.search(r"Cpus_allowed_list:\s+(\S+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return found[1]


def diagnostics(admin: Connection, server: str) -> dict[str, Any]:
    answer = admin.compute.get(f"/servers/{server}/diagnostics", microversion="2.1")
    exceptions.raise_from_response(answer)
    found: dict[str, Any] = answer.json()
    return found
