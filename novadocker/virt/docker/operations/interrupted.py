# SPDX-License-Identifier: Apache-2.0
"""The operations during which nova-compute died and that Nova itself does not end.

Nova leaves the task of such an instance, so the API would refuse each further request for it. When
nova-compute starts, the operation is complete if the container shows its effect. Otherwise it is
taken back. A new operation is one line in ``OPERATIONS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nova import objects
from nova.compute import instance_actions, task_states, vm_states
from oslo_log import log as logging

from novadocker.virt.docker.containers import rescue
from novadocker.virt.docker.containers.servers import has_ended, power_state_of
from novadocker.virt.docker.model import Container
from novadocker.virt.docker.operations.protocols import NovaRecords

LOG = logging.getLogger(__name__)

DIED = "nova-compute died during the operation"
"""What a tenant reads in an instance action that was taken back."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """An operation that has a task state.

    :ivar action: Nova's name of the instance action; empty if nova-compute sets the task itself.
        nova-api sets other tasks, and the request may still be in the host's queue
    :ivar event: the event of the action that nova-compute begins
    :ivar done: returns True if a container shows the effect
    :ivar vm_state: the instance's state after the operation; empty if it stays as it is
    :ivar saves_memory: True if an ended container whose memory is on the disk shows the effect, too
    :ivar leaves_image: True if nova-api has created a Glance image for it
    """

    action: str = ""
    event: str = ""
    done: Callable[[Container], bool] = lambda _container: False
    vm_state: str = ""
    saves_memory: bool = False
    leaves_image: bool = False


def _is_paused(container: Container) -> bool:
    return container.status == "paused"


def _runs(container: Container) -> bool:
    return container.status == "running"


_SNAPSHOT = Operation(leaves_image=True)
_SHELVING = Operation(
    action=instance_actions.SHELVE, event="compute_shelve_instance", leaves_image=True
)

OPERATIONS: Mapping[str, Operation] = {
    task_states.PAUSING: Operation(
        action=instance_actions.PAUSE,
        event="compute_pause_instance",
        done=_is_paused,
        vm_state=vm_states.PAUSED,
    ),
    task_states.SUSPENDING: Operation(
        action=instance_actions.SUSPEND,
        event="compute_suspend_instance",
        done=_is_paused,
        vm_state=vm_states.SUSPENDED,
        saves_memory=True,
    ),
    task_states.RESUMING: Operation(
        action=instance_actions.RESUME,
        event="compute_resume_instance",
        done=_runs,
        vm_state=vm_states.ACTIVE,
    ),
    task_states.RESCUING: Operation(
        action=instance_actions.RESCUE,
        event="compute_rescue_instance",
        done=lambda container: rescue.is_stand_in(container) and _runs(container),
        vm_state=vm_states.RESCUED,
    ),
    task_states.UNRESCUING: Operation(
        action=instance_actions.UNRESCUE,
        event="compute_unrescue_instance",
        done=lambda container: not rescue.is_stand_in(container),
        vm_state=vm_states.ACTIVE,
    ),
    task_states.UPDATING_PASSWORD: Operation(
        action=instance_actions.CHANGE_PASSWORD, event="compute_set_admin_password"
    ),
    task_states.IMAGE_SNAPSHOT: _SNAPSHOT,
    task_states.IMAGE_PENDING_UPLOAD: _SNAPSHOT,
    task_states.IMAGE_UPLOADING: _SNAPSHOT,
    task_states.IMAGE_BACKUP: Operation(
        action=instance_actions.BACKUP, event="compute_backup_instance", leaves_image=True
    ),
    task_states.SHELVING: _SHELVING,
    task_states.SHELVING_IMAGE_PENDING_UPLOAD: _SNAPSHOT,
    task_states.SHELVING_IMAGE_UPLOADING: _SNAPSHOT,
}
"""The operations by task state."""


def end(
    records: NovaRecords,
    host: str,
    servers: Callable[[], Mapping[str, Container]],
    add_image: Callable[[objects.Instance], None],
    has_memory: Callable[[str, str], bool],
) -> None:
    """End the operations of a host.

    The instance actions get a result, which Nova itself does not record.

    Call it when nova-compute starts, before Nova reads the instances.

    :param servers: returns the containers by instance UUID
    :param add_image: called with each instance for which nova-api created an image, while Nova
        still has its task
    :param has_memory: returns True if the whole memory of an instance's container is on the disk
    :raises EngineUnavailable: the engine does not answer
    """
    events = {task: (found.action, found.event) for task, found in OPERATIONS.items()}
    for instance in records.cut_off(host, events):
        task = instance.task_state
        operation = OPERATIONS[task]
        if operation.leaves_image:
            add_image(instance)
        container = servers().get(instance.uuid)
        done = container is not None and (
            operation.done(container)
            or (
                operation.saves_memory
                and has_ended(container)
                and has_memory(instance.uuid, container.id)
            )
        )
        if container is not None and done:
            instance.vm_state = operation.vm_state
            instance.power_state = power_state_of(container)
        instance.task_state = None
        if records.save(instance, task):
            LOG.warning(
                "nova-compute died during the task %s; the instance is %s now",
                task,
                instance.vm_state,
                instance=instance,
            )
            for event in records.cut_off_events(instance.uuid, host):
                records.end_event(event, None if done else DIED)
