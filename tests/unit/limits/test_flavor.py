# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
from nova import exception as nova_exception
from nova import objects
from nova.objects import fields
from nova.virt import hardware
from oslo_utils import units

from novadocker import exception
from novadocker.linux.cgroup import DiskRates
from novadocker.privsep.network.types import NetworkRate
from novadocker.virt.docker.engine import requests
from novadocker.virt.docker.host import topology
from novadocker.virt.docker.host.topology import CpuSets
from novadocker.virt.docker.limits import flavor as flavor_limits
from tests.unit import fakes

ANY_CPU = CpuSets(frozenset(range(8)), frozenset(), False)
DIVIDED = CpuSets(frozenset([0, 1, 4]), frozenset([2, 3, 5, 6, 7]), True)
NONE_SHARED = CpuSets(frozenset(), frozenset(range(8)), True)


def rules(sets: CpuSets = ANY_CPU, sized: bool = False, image: Any = ()) -> flavor_limits.Rules:
    return flavor_limits.rules(fakes.CELLS, sets, pids=77, sized_disks=sized, image_may_ask=image)


def cell(number: int, shared: set[int], pinning: dict[int, int]) -> objects.InstanceNUMACell:
    return objects.InstanceNUMACell(
        id=number, cpuset=shared, pcpuset=set(pinning), memory=128, cpu_pinning=pinning
    )


def topology_of(*cells: objects.InstanceNUMACell) -> objects.InstanceNUMATopology:
    return objects.InstanceNUMATopology(cells=list(cells))


@pytest.mark.parametrize(
    ("vcpus", "specs", "shares", "period", "quota"),
    [
        (1, {}, 1024, 100_000, 100_000),
        (4, {}, 4096, 100_000, 400_000),
        (512, {}, 262_144, 100_000, 51_200_000),
        (2, {"quota:cpu_shares": "300"}, 300, 100_000, 200_000),
        (2, {"quota:cpu_shares": "0"}, 2048, 100_000, 200_000),
        # A quota applies to one virtual CPU, as with libvirt.
        (2, {"quota:cpu_quota": "10000"}, 2048, 100_000, 20_000),
        (2, {"quota:cpu_quota": "10000", "quota:cpu_period": "20000"}, 2048, 20_000, 20_000),
        # A virtual CPU never exceeds one CPU.
        (2, {"quota:cpu_quota": "900000"}, 2048, 100_000, 200_000),
        (2, {"quota:cpu_quota": "-1", "quota:cpu_period": "50000"}, 2048, 50_000, 100_000),
        (2, {"quota:cpu_quota": "0", "quota:cpu_period": "0"}, 2048, 100_000, 200_000),
    ],
)
def test_cpu_time(
    instance: Any, vcpus: int, specs: dict[str, str], shares: int, period: int, quota: int
) -> None:
    instance.flavor.vcpus, instance.flavor.extra_specs = vcpus, specs
    found = flavor_limits.instance_limits(instance, rules())
    assert (found.cpu_shares, found.cpu_period_us, found.cpu_quota_us) == (shares, period, quota)


@pytest.mark.parametrize(("sized", "disk"), [(False, 0), (True, 5 << 30)])
def test_sizes(instance: Any, sized: bool, disk: int) -> None:
    flavor = instance.flavor
    flavor.memory_mb, flavor.swap, flavor.root_gb = 256, 64, 5
    found = flavor_limits.instance_limits(instance, rules(sized=sized))
    assert (found.memory_bytes, found.swap_bytes) == (256 << 20, 64 << 20)
    assert (found.disk_bytes, found.pids) == (disk, 77)


@pytest.mark.parametrize("image", [5 << 30, 6 << 30])
def test_image_that_fills_the_disk(instance: Any, image: int) -> None:
    instance.flavor.root_gb = 5
    with pytest.raises(nova_exception.FlavorDiskSmallerThanImage):
        flavor_limits.check_image_fits(
            image, flavor_limits.instance_limits(instance, rules(sized=True))
        )
    flavor_limits.check_image_fits(
        image, flavor_limits.instance_limits(instance, rules(sized=False))
    )
    flavor_limits.check_image_fits(
        (5 << 30) - 1, flavor_limits.instance_limits(instance, rules(sized=True))
    )


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        ({}, DiskRates()),
        ({"quota:disk_read_bytes_sec": "10240"}, DiskRates(read_bytes=10240)),
        (
            {"quota:disk_write_bytes_sec": "5", "quota:disk_write_iops_sec": "6"},
            DiskRates(write_bytes=5, write_iops=6),
        ),
        ({"quota:disk_total_iops_sec": "100"}, DiskRates(read_iops=100, write_iops=100)),
        (
            {"quota:disk_total_bytes_sec": "7", "quota:disk_read_iops_sec": "9"},
            DiskRates(read_bytes=7, write_bytes=7, read_iops=9),
        ),
        ({"quota:disk_total_bytes_sec": "0", "quota:disk_read_bytes_sec": "3"}, DiskRates(3)),
    ],
)
def test_disk_rates(instance: Any, specs: dict[str, str], expected: DiskRates) -> None:
    instance.flavor.extra_specs = specs
    assert flavor_limits.instance_limits(instance, rules()).disk == expected


@pytest.mark.parametrize(
    ("specs", "inbound", "outbound"),
    [
        ({}, None, None),
        ({"quota:vif_inbound_average": "1000"}, NetworkRate(1_000_000), None),
        (
            {
                "quota:vif_outbound_average": "1",
                "quota:vif_outbound_peak": "2",
                "quota:vif_outbound_burst": "3",
            },
            None,
            NetworkRate(average=1000, peak=2000, burst=3 * units.Ki),
        ),
        ({"quota:vif_inbound_average": "0"}, None, None),
    ],
)
def test_network_rates(instance: Any, specs: dict[str, str], inbound: Any, outbound: Any) -> None:
    instance.flavor.extra_specs = specs
    found = flavor_limits.instance_limits(instance, rules())
    assert (found.inbound, found.outbound) == (inbound, outbound)


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ({"quota:cpu_shares": "1"}, "quota:cpu_shares: 1 is not between 2 and 262144"),
        ({"quota:cpu_shares": "262145"}, "262145"),
        ({"quota:cpu_shares": "many"}, "'many' is not a whole number"),
        ({"quota:cpu_period": "999"}, "quota:cpu_period"),
        ({"quota:cpu_period": "1000001"}, "quota:cpu_period"),
        ({"quota:cpu_quota": "999"}, "quota:cpu_quota: 999 is less than 1000"),
        ({"quota:disk_read_bytes_sec": "-1"}, "quota:disk_read_bytes_sec"),
        (
            {"quota:disk_total_iops_sec": "9", "quota:disk_write_iops_sec": "9"},
            "quota:disk_total_iops_sec excludes quota:disk_write_iops_sec",
        ),
        ({"quota:vif_inbound_peak": "9"}, "quota:vif_inbound_average is missing"),
        (
            {"quota:vif_outbound_average": "9", "quota:vif_outbound_peak": "8"},
            "quota:vif_outbound_peak is below",
        ),
        ({"docker:pids_limit": "15"}, "docker:pids_limit: 15 is not between 16 and 4194304"),
        ({"docker:pid_limit": "99"}, "docker:pid_limit is not an extra spec"),
        ({"hw:cpu_policy": "dedicated"}, "no dedicated CPUs"),
    ],
)
def test_refused(instance: Any, specs: dict[str, str], words: str) -> None:
    instance.flavor.extra_specs = specs
    with pytest.raises(exception.InvalidLimits, match=words) as raised:
        flavor_limits.instance_limits(instance, rules())
    assert len(raised.value.format_message()) <= 255


# -- images' requests -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flavor", "image", "allowed", "pids"),
    [
        ({}, {"image_docker_pids_limit": "99"}, ["docker:pids_limit"], 99),
        ({"docker:pids_limit": "50"}, {"image_docker_pids_limit": "99"}, ["docker:pids_limit"], 50),
        # The driver ignores other drivers' properties.
        ({}, {"image_docker_version": "1", "docker_pids_limit": "99"}, [], 77),
    ],
)
def test_image(
    instance: Any, flavor: dict[str, str], image: dict[str, str], allowed: list[str], pids: int
) -> None:
    instance.flavor.extra_specs, instance.system_metadata = flavor, image
    assert flavor_limits.instance_limits(instance, rules(image=allowed)).pids == pids


def test_image_asks_for_shared_memory_and_a_sysctl(
    driver: Any, instance: Any, image_meta: Any, network_info: Any, options: Any, engine: Any
) -> None:
    names = ["docker:shm_size_mb", "docker:sysctl:net.core.somaxconn"]
    options(group="docker", image_extra_specs=names)
    instance.system_metadata |= {
        "image_docker_shm_size_mb": "32",
        "image_docker_sysctl:net.core.somaxconn": "8192",
    }
    driver.spawn(None, instance, image_meta, [], None, {}, network_info=network_info)
    config = requests.container_config(engine.specs[f"nova-{instance.uuid}"])
    assert config["HostConfig"]["ShmSize"] == 32 << 20
    assert config["HostConfig"]["Sysctls"] == {"net.core.somaxconn": "8192"}


@pytest.mark.parametrize("allowed", [[], ["docker:shm_size_mb"]])
def test_image_asks_for_what_it_may_not(instance: Any, allowed: list[str]) -> None:
    instance.system_metadata = {"image_docker_capabilities": "NET_ADMIN"}
    with pytest.raises(exception.InvalidLimits, match="may not set docker_capabilities"):
        flavor_limits.instance_limits(instance, rules(image=allowed))


# -- CPU sets -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sets", "placed", "cpus", "nodes"),
    [
        (ANY_CPU, None, set(), set()),
        (DIVIDED, None, {0, 1, 4}, set()),
        (ANY_CPU, topology_of(cell(1, {0, 1}, {})), {4, 5, 6, 7}, {1}),
        (DIVIDED, topology_of(cell(0, {0}, {}), cell(1, {1}, {})), {0, 1, 4}, {0, 1}),
        (DIVIDED, topology_of(cell(1, set(), {0: 7, 1: 5})), {5, 7}, {1}),
        (NONE_SHARED, topology_of(cell(0, set(), {0: 2})), {2}, {0}),
        # hw:cpu_policy=mixed
        (DIVIDED, topology_of(cell(0, {1}, {0: 3})), {0, 1, 3}, {0}),
    ],
)
def test_cpuset(instance: Any, sets: CpuSets, placed: Any, cpus: set[int], nodes: set[int]) -> None:
    instance.numa_topology = placed
    found = flavor_limits.instance_limits(instance, rules(sets))
    assert (found.cpuset_cpus, found.cpuset_mems) == (cpus, nodes)


def test_no_shared_server_on_a_host_of_dedicated_cpus(instance: Any) -> None:
    with pytest.raises(exception.InvalidLimits, match="all CPUs of this host"):
        flavor_limits.instance_limits(instance, rules(NONE_SHARED))


def test_a_cpu_that_nova_did_not_choose(instance: Any) -> None:
    placed = cell(0, set(), {0: 2})
    placed.pcpuset = {0, 1}
    instance.numa_topology = topology_of(placed)
    with pytest.raises(exception.InvalidLimits, match="no dedicated CPUs"):
        flavor_limits.instance_limits(instance, rules(DIVIDED))


def test_dedicated_cpus_need_no_quota(instance: Any) -> None:
    instance.flavor.extra_specs = {"hw:cpu_policy": "dedicated"}
    instance.numa_topology = topology_of(cell(0, set(), {0: 2, 1: 3}))
    assert flavor_limits.instance_limits(instance, rules(DIVIDED)).cpu_quota_us == 0
    instance.flavor.extra_specs["quota:cpu_quota"] = "50000"
    assert flavor_limits.instance_limits(instance, rules(DIVIDED)).cpu_quota_us == 100_000


@pytest.mark.parametrize("thread_policy", [None, "prefer", "isolate"])
def test_servers_that_nova_places_never_overlap(
    instance: Any, image_meta: Any, thread_policy: str | None
) -> None:
    """Nova's own code places servers on the driver's topology until the host is full."""
    flavor = instance.flavor
    flavor.vcpus, flavor.memory_mb = 2, 64
    flavor.extra_specs = {"hw:cpu_policy": fields.CPUAllocationPolicy.DEDICATED}
    if thread_policy:
        flavor.extra_specs["hw:cpu_thread_policy"] = thread_policy
    host = topology.numa_topology(fakes.CELLS, DIVIDED)
    taken: list[frozenset[int]] = []
    while placed := hardware.numa_fit_instance_to_host(
        host, hardware.numa_get_constraints(flavor, image_meta), provider_mapping=None
    ):
        host = hardware.numa_usage_from_instance_numa(host, placed)
        instance.numa_topology = placed
        taken.append(flavor_limits.instance_limits(instance, rules(DIVIDED)).cpuset_cpus)
    assert [len(cpus) for cpus in taken] == [2, 2]
    assert not taken[0] & taken[1]
    assert taken[0] | taken[1] <= DIVIDED.dedicated
