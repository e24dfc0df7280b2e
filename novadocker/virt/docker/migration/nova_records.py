# SPDX-License-Identifier: Apache-2.0
"""Resize: what a change of a server's limits must not break, and the way back.

On the same host the container stays what it is and its limits change under it. They do so in
``migrate_disk_and_power_off``, the one step after which Nova can put everything back: flavor,
claims and allocations. The later steps find them set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.compute import instance_actions, rpcapi, task_states, vm_states
from nova.scheduler.client import report
from oslo_utils import timeutils


@contextmanager
def rolled_back() -> Iterator[None]:
    """Have Nova put the server back to what it was, not into ERROR, when the body fails.

    :raises InstanceFaultRollback: it failed; the fault is the failure's own
    """
    try:
        yield
    except nova_exception.InstanceFaultRollback:
        raise
    except (nova_exception.NovaException, OSError) as error:
        raise nova_exception.InstanceFaultRollback(error) from error


def is_to_other_host(migration: objects.Migration) -> bool:
    """Tell whether a server moves to another host."""
    return bool(migration.source_compute != migration.dest_compute)


def is_reverted_here(instance: objects.Instance) -> bool:
    """Tell whether a server that Nova wants destroyed is the one that a resize goes back to.

    Nova destroys what the destination has, and here that is the only copy. Its own records say
    so, which outlive a restart of nova-compute.

    :raises MigrationNotFoundByStatus: they do not say; nothing must be destroyed then
    """
    if instance.task_state != task_states.RESIZE_REVERTING:
        return False
    if instance.migration_context is None:
        raise nova_exception.MigrationNotFoundByStatus(
            instance_id=instance.uuid, status="reverting"
        )
    migration = objects.Migration.get_by_id_and_instance(
        instance._context, instance.migration_context.migration_id, instance.uuid
    )
    return bool(migration.is_same_host_resize)


def is_gone_for_good(instance: objects.Instance, host: str) -> bool:
    """Tell whether what a host destroys of an instance is the instance, not what it left there."""
    return bool(instance.host == host and instance.task_state != task_states.RESIZE_REVERTING)


def is_cut_off(instance: objects.Instance) -> bool:
    """Tell whether nova-compute died while it finished a move to this host.

    To be asked when nova-compute starts. Nova itself leaves such an instance as it is.
    """
    return bool(instance.task_state == task_states.RESIZE_FINISH)


def take_back(
    context: nova_context.RequestContext, instance: objects.Instance, migration: objects.Migration
) -> None:
    """Have Nova's records say that an instance has not left, after nova-compute died in a move.

    As the manager does when ``migrate_disk_and_power_off`` fails; after its own end it leaves the
    allocations to the destination. Does nothing for a move that nova-compute did not die in.
    """
    if instance.task_state != task_states.RESIZE_MIGRATING:
        return
    placement = report.report_client_singleton()
    if placement.get_allocations_for_consumer(context, migration.uuid):
        placement.move_allocations(context, migration.uuid, instance.uuid)
    migration.status = "error"
    migration.save()


def runs_after(instance: objects.Instance) -> bool:
    """Tell whether an instance is to run when it has moved."""
    return bool(instance.system_metadata.get("old_vm_state") != vm_states.STOPPED)


def set_finished(instance: objects.Instance) -> None:
    """Have Nova's records say that a move is finished, to be confirmed or reverted.

    They are those that the manager sets after ``finish_migration``.
    """
    migration = objects.Migration.get_by_id_and_instance(
        instance._context, instance.migration_context.migration_id, instance.uuid
    )
    migration.status = "finished"
    migration.save()
    instance.vm_state = vm_states.RESIZED
    instance.task_state = None
    instance.launched_at = timeutils.utcnow()
    instance.save(expected_task_state=task_states.RESIZE_FINISH)


def resume_cut_off(host: str) -> None:
    """Have confirmations and reverts go on that nova-compute died in.

    To be called when nova-compute starts. Requests that still wait for this host are not harmed.
    """
    reopen_confirmations(host)
    resume_reverts(host)


def reopen_confirmations(host: str) -> None:
    """Let moves from this host be confirmed once more whose confirmation was cut off.

    The API refuses what Nova takes for under way, for good.
    """
    found = objects.MigrationList.get_by_filters(
        nova_context.get_admin_context(), {"source_compute": host, "status": "confirming"}
    )
    for migration in found:
        migration.status = "finished"
        migration.save()


def resume_reverts(host: str) -> None:
    """Ask this host once more for its part of reverts that were cut off in it.

    It is the removal on the destination, or the return on the source; both can be repeated. What
    has not begun waits in this host's queue, and is left alone.
    """
    context = nova_context.get_admin_context()
    compute = rpcapi.ComputeAPI()
    reverting = objects.InstanceList.get_by_filters(
        context, {"task_state": task_states.RESIZE_REVERTING}
    )
    for instance in reverting:
        begun = _cut_off_events(context, instance, host)
        migration = _last_migration(context, instance)
        # without the request's resources, which are for ports with a guaranteed bandwidth
        if "compute_finish_revert_resize" in begun:
            compute.finish_revert_resize(context, instance, migration, host, None)
        elif "compute_revert_resize" in begun:
            compute.revert_resize(context, instance, migration, host, None)


def _cut_off_events(
    context: nova_context.RequestContext, instance: objects.Instance, host: str
) -> set[str]:
    """Return what a host has begun of an instance's last action and not ended."""
    actions = objects.InstanceActionList.get_by_instance_uuid(context, instance.uuid, limit=1)
    if not actions or actions[0].action != instance_actions.REVERT_RESIZE:
        return set()
    events = objects.InstanceActionEventList.get_by_action(context, actions[0].id)
    # of what was done twice Nova ends the first
    ended = {event.event for event in events if event.finish_time}
    return {event.event for event in events if event.host == host} - ended


def _last_migration(
    context: nova_context.RequestContext, instance: objects.Instance
) -> objects.Migration:
    found = objects.MigrationList.get_by_filters(context, {"instance_uuid": instance.uuid})
    return max(found, key=lambda migration: migration.id)
