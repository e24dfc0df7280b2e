# SPDX-License-Identifier: Apache-2.0
"""Servers that start when their host starts."""

import threading
from typing import Any

import pytest
from nova import context as nova_context
from nova import objects
from nova.compute import power_state, task_states, vm_states
from nova.tests.unit import fake_instance

from novadocker import naming
from novadocker.virt.docker.driver import DockerDriver
from novadocker.virt.docker.model import Container
from novadocker.virt.docker.operations import power
from tests.unit.conftest import network_info
from tests.unit.fakes import FakeEngine, FakeNetwork

CONTEXT = nova_context.get_admin_context()
RAN = {
    "power_state": power_state.RUNNING,
    "vm_state": vm_states.ACTIVE,
    "task_state": None,
}


def make(**values: Any) -> objects.Instance:
    found = fake_instance.fake_instance_obj(CONTEXT, **{**RAN, **values})
    found.flavor = objects.Flavor(
        name="d1.tiny", vcpus=1, memory_mb=64, root_gb=0, ephemeral_gb=0, swap=0, extra_specs={}
    )
    found.config_drive = ""
    found.numa_topology = None
    found.system_metadata = {}
    found.info_cache = objects.InstanceInfoCache(network_info=network_info())
    return found


@pytest.mark.parametrize(
    ("status", "values", "comes_back"),
    [
        ("exited", {}, True),
        ("running", {}, False),
        ("paused", {}, False),
        ("created", {}, False),
        ("gone", {}, False),
        ("exited", {"power_state": power_state.SHUTDOWN}, False),
        ("exited", {"vm_state": vm_states.ERROR}, False),
        ("exited", {"vm_state": vm_states.SOFT_DELETED}, False),
        ("exited", {"task_state": task_states.DELETING}, False),
        ("exited", {"task_state": task_states.REBOOTING}, False),
    ],
)
def test_who_comes_back(status: str, values: dict[str, Any], comes_back: bool) -> None:
    instance = make(**values)
    servers = (
        {}
        if status == "gone"
        else {instance.uuid: Container("id", naming.container_name(instance.uuid), status, {})}
    )
    assert bool(power.interrupted([instance], servers)) is comes_back


def test_some_at_a_time_and_one_that_fails_stops_no_other() -> None:
    together = threading.Barrier(power._AT_ONCE)
    lock = threading.Lock()
    now, most, started = 0, 0, []

    def start(instance: objects.Instance) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        # The barrier opens only when the maximum number of threads is here.
        together.wait(timeout=60)
        with lock:
            now -= 1
            started.append(instance.id)
        if instance.id == 1:
            raise RuntimeError("it can't")

    numbers = range(3 * power._AT_ONCE)
    power.start_all([make(id=number) for number in numbers], start)
    assert sorted(started) == list(numbers)
    assert most == power._AT_ONCE


@pytest.mark.parametrize("wanted", [True, False])
def test_a_host_that_comes_back(
    driver: DockerDriver, engine: FakeEngine, network: FakeNetwork, options: Any, wanted: bool
) -> None:
    options(resume_guests_state_on_host_boot=wanted)
    instances = [make(id=number, uuid=f"{number:08}-{'0000-' * 3}{'0' * 12}") for number in (1, 2)]
    for instance in instances:
        labels = {naming.LABEL_UUID: instance.uuid, naming.LABEL_SCHEMA: naming.SCHEMA}
        engine.add(naming.container_name(instance.uuid), labels, "exited")
    driver.plug_vifs(instances[0], instances[0].get_network_info())
    assert driver.process_instances_at_startup(CONTEXT, instances) == instances
    states = {container.status for container in engine.containers.values()}
    assert states == ({"running"} if wanted else {"exited"})
    # Nova wires the ports next, and the ports of running servers must not be set down.
    for instance in instances:
        driver.plug_vifs(instance, instance.get_network_info())
    assert bool(network.silent) is not wanted
