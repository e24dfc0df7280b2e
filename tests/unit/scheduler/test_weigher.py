# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest
from nova import conf, objects
from nova.scheduler import weights
from nova.scheduler.weights import compute

from novadocker.scheduler import SameHostWeigher

UUID = "5e0e6b29-1b4e-4d83-8a4e-3a57d9a6a0b2"


def weigh(*hosts: dict[str, object]) -> list[float]:
    states = [SimpleNamespace(**host) for host in hosts]
    weighed = weights.HostWeightHandler().get_weighed_objects(
        [SameHostWeigher()], states, objects.RequestSpec(instance_uuid=UUID)
    )
    return [weighed_host.weight for weighed_host in sorted(weighed, key=lambda w: w.obj.host)]


@pytest.mark.parametrize(
    ("first", "second", "preferred"),
    [
        ({}, {UUID: object()}, [0.0, 1e9]),
        ({UUID: object()}, {}, [1e9, 0.0]),
        ({}, {"other": object()}, [0.0, 0.0]),
    ],
)
def test_the_host_that_has_it(
    first: dict[str, object], second: dict[str, object], preferred: list[float]
) -> None:
    hosts = [
        {"host": name, "nodename": name, "instances": found}
        for name, found in (("a", first), ("b", second))
    ]
    assert weigh(*hosts) == preferred


def test_nova_loads_it_by_the_documented_names() -> None:
    names = ["nova.scheduler.weights.all_weighers", "novadocker.scheduler.SameHostWeigher"]
    found = weights.HostWeightHandler().get_matching_classes(names)
    assert SameHostWeigher in found
    assert conf.CONF.filter_scheduler.ram_weight_multiplier < 1000


def test_failed_builds_do_not_move_a_resize() -> None:
    hosts = [
        SimpleNamespace(
            host=name, nodename=name, instances=found, failed_builds=failed, aggregates=[]
        )
        for name, found, failed in (("own", {UUID: object()}, 3), ("other", {}, 0))
    ]
    weighers = [compute.BuildFailureWeigher(), SameHostWeigher()]
    request = objects.RequestSpec(instance_uuid=UUID)
    best = weights.HostWeightHandler().get_weighed_objects(weighers, hosts, request)[0]
    assert best.obj.host == "own"
