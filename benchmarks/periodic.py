# SPDX-License-Identifier: Apache-2.0
"""Requests and CPU time of Nova's periodic calls of the driver; for a worker's process."""

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import docker
from nova import objects
from nova.compute import provider_tree
from nova.network import model

from novadocker.virt.docker.driver import DockerDriver

RESOURCES, STATES, LISTING = "resources", "power states", "deleted servers"


def measure(
    driver: DockerDriver,
    host: str,
    servers: Sequence[tuple[objects.Instance, model.NetworkInfo]],
) -> dict[str, dict[str, float]]:
    """Run each task once; return its requests to the engine and its CPU seconds."""
    tree = provider_tree.ProviderTree()
    tree.new_root(host, str(uuid.uuid4()))

    def update_resources() -> None:
        driver.get_available_resource(host)
        driver.update_provider_tree(tree, host)

    def sync_power_states() -> None:
        driver.get_num_instances()
        for instance, _ in servers:
            driver.get_info(instance)

    # The images' task deletes images, so it is not measured.
    tasks: dict[str, Callable[[], object]] = {
        RESOURCES: update_resources,
        STATES: sync_power_states,
        LISTING: driver.list_instance_uuids,
    }
    return {name: _measure(task) for name, task in tasks.items()}


def _measure(task: Callable[[], object]) -> dict[str, float]:
    calls = 0
    send = docker.APIClient.send

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return send(*arguments, **options)

    with mock.patch.object(docker.APIClient, "send", counted):
        # This thread's CPU time excludes the other threads', which count as the driver's own.
        begin = time.thread_time()
        task()
        cpu = time.thread_time() - begin
    return {"calls": calls, "cpu": cpu}
