# SPDX-License-Identifier: Apache-2.0
"""After the host went down: the servers that ran are started again, a few at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent import futures

from nova import objects
from nova.compute import power_state, vm_states
from oslo_log import log as logging

from novadocker.virt.docker.model import Container

LOG = logging.getLogger(__name__)

# more at once take no less time in all: the engine's starts keep the CPUs busy
_AT_ONCE = 4


def interrupted(
    instances: Iterable[objects.Instance], servers: Mapping[str, Container]
) -> list[objects.Instance]:
    """Return those that Nova knows as running and nothing else, and that have no process: pure.

    What else Nova's manager resumes, such as what was being rebooted, is left to it.
    """
    return [
        instance
        for instance in instances
        if instance.uuid in servers
        and servers[instance.uuid].status == "exited"
        and instance.power_state == power_state.RUNNING
        and instance.vm_state == vm_states.ACTIVE
        and instance.task_state is None
    ]


def start_all(
    instances: Iterable[objects.Instance], start: Callable[[objects.Instance], None]
) -> None:
    """Start instances, a few at a time; one that fails is told of and does not stop the others."""
    with futures.ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="startup") as pool:
        begun = [(instance, pool.submit(start, instance)) for instance in instances]
    for instance, started in begun:
        if error := started.exception():
            LOG.warning("It did not come back with its host: %s", error, instance=instance)
