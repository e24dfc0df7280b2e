# SPDX-License-Identifier: Apache-2.0
"""Nova's records of moves and resizes: instances, migrations, instance actions, allocations.

A resize on the same host changes the limits in ``migrate_disk_and_power_off``, because that is the
only step after whose failure Nova restores flavor, claims and allocations.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.compute import instance_actions, rpcapi, task_states, vm_states
from nova.scheduler.client import report
from oslo_utils import timeutils

from novadocker import privsep


@contextmanager
def rolled_back() -> Iterator[None]:
    """Translate a failure of the body, so that Nova restores the instance instead of setting ERROR.

    :raises InstanceFaultRollback: the body failed; contains its exception
    """
    try:
        yield
    except nova_exception.InstanceFaultRollback:
        raise
    except (nova_exception.NovaException, OSError, *privsep.UNANSWERED) as error:
        raise nova_exception.InstanceFaultRollback(error) from error


def is_to_other_host(migration: objects.Migration) -> bool:
    """Return True if an instance moves to another host."""
    return bool(migration.source_compute != migration.dest_compute)


def is_reverted_here(instance: objects.Instance) -> bool:
    """Return True if Nova destroys an instance because its resize on this host is reverted.

    Nova destroys the destination's instance, which after a resize on the same host is the only one.
    Nova's records show it, and outlive a restart of nova-compute.

    :raises MigrationNotFoundByStatus: the records do not show it; nothing may be destroyed then
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
    """Return True if a host destroys an instance itself, not the remains of a move."""
    return bool(instance.host == host and instance.task_state != task_states.RESIZE_REVERTING)


def is_cut_off(instance: objects.Instance) -> bool:
    """Return True if nova-compute died while it finished a move to this host.

    Valid only while nova-compute starts. Nova itself does not change such an instance.
    """
    return bool(instance.task_state == task_states.RESIZE_FINISH)


def is_on_its_way(instance: objects.Instance) -> bool:
    """Return True if the source has sent an instance, and the destination has not begun.

    A resize on the same host passes this state, too.
    """
    return bool(instance.task_state == task_states.RESIZE_MIGRATED)


def take_back(
    context: nova_context.RequestContext, instance: objects.Instance, migration: objects.Migration
) -> None:
    """Restore allocations and migration status of an instance that stayed on this host.

    nova-compute died in its move. The manager does the same when ``migrate_disk_and_power_off``
    fails, but when it dies, the destination keeps the allocations. Does nothing if nova-compute did
    not die in the move.
    """
    if instance.task_state != task_states.RESIZE_MIGRATING:
        return
    placement = report.report_client_singleton()
    if placement.get_allocations_for_consumer(context, migration.uuid):
        placement.move_allocations(context, migration.uuid, instance.uuid)
    migration.status = "error"
    migration.save()


def runs_after(instance: objects.Instance) -> bool:
    """Return True if an instance runs after its move."""
    return bool(instance.system_metadata.get("old_vm_state") != vm_states.STOPPED)


def set_finished(instance: objects.Instance) -> None:
    """Set migration and instance to a finished, unconfirmed move.

    The manager does the same after ``finish_migration``.
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
    """Resume the confirmations and reverts in which nova-compute died.

    Call it when nova-compute starts. It does not affect requests in this host's queue.
    """
    reopen_confirmations(host)
    resume_reverts(host)


def cut_off(host: str, events: Mapping[str, tuple[str, str]]) -> Iterator[objects.Instance]:
    """Yield the instances of a host in whose operation nova-compute died.

    Call it when nova-compute starts. An operation that has not begun is still in this host's queue
    and is not affected.

    :param events: for each task state, the instance action and its event on the compute host; the
        action is empty if nova-compute sets the task state itself
    """
    context = nova_context.get_admin_context()
    filters = {"host": host, "task_state": list(events)}
    for instance in objects.InstanceList.get_by_filters(context, filters):
        action, event = events[instance.task_state]
        if not action or event in _cut_off_events(context, instance, host, action):
            yield instance


def deleted(uuids: Collection[str]) -> Iterable[objects.Instance]:
    """Return those of the instances that Nova has deleted and still knows."""
    if not uuids:
        return ()
    found: Iterable[objects.Instance] = objects.InstanceList.get_by_filters(
        nova_context.get_admin_context(read_deleted="yes"),
        {"uuid": list(uuids), "deleted": True, "soft_deleted": False},
    )
    return found


def save(instance: objects.Instance, task: str) -> bool:
    """Save an instance unless its task has changed or it was deleted; return True if it is saved.

    :param task: the expected task state in the database
    """
    try:
        instance.save(expected_task_state=task)
    except (nova_exception.InstanceNotFound, nova_exception.UnexpectedTaskStateError):
        return False
    return True


def reopen_confirmations(host: str) -> None:
    """Allow another confirmation of moves from this host whose confirmation was cut off.

    Otherwise the API refuses it for ever, because the migration's status is ``confirming``.
    """
    found = objects.MigrationList.get_by_filters(
        nova_context.get_admin_context(), {"source_compute": host, "status": "confirming"}
    )
    for migration in found:
        migration.status = "finished"
        migration.save()


def resume_reverts(host: str) -> None:
    """Re-send the revert RPC for every resize revert that this host had begun when it was cut off.

    The RPC is ``revert_resize`` on the destination and ``finish_revert_resize`` on the source. Both
    are idempotent. An RPC that has not begun is still in this host's queue and is not re-sent.
    """
    context = nova_context.get_admin_context()
    compute = rpcapi.ComputeAPI()
    reverting = objects.InstanceList.get_by_filters(
        context, {"task_state": task_states.RESIZE_REVERTING}
    )
    for instance in reverting:
        begun = _cut_off_events(context, instance, host, instance_actions.REVERT_RESIZE)
        migration = _last_migration(context, instance)
        # Without request_spec resources, because only ports with a guaranteed bandwidth need them.
        if "compute_finish_revert_resize" in begun:
            compute.finish_revert_resize(context, instance, migration, host, None)
        elif "compute_revert_resize" in begun:
            compute.revert_resize(context, instance, migration, host, None)


def _cut_off_events(
    context: nova_context.RequestContext, instance: objects.Instance, host: str, action: str
) -> set[str]:
    """Return the names of the events of an instance's last action that a host began, not ended.

    :param action: the name of the action; the set is empty if the last action has another name
    """
    actions = objects.InstanceActionList.get_by_instance_uuid(context, instance.uuid, limit=1)
    if not actions or actions[0].action != action:
        return set()
    events = objects.InstanceActionEventList.get_by_action(context, actions[0].id)
    # If an event was done twice, Nova sets the end of the first one.
    ended = {event.event for event in events if event.finish_time}
    return {event.event for event in events if event.host == host} - ended


def _last_migration(
    context: nova_context.RequestContext, instance: objects.Instance
) -> objects.Migration:
    found = objects.MigrationList.get_by_filters(context, {"instance_uuid": instance.uuid})
    return max(found, key=lambda migration: migration.id)
