# SPDX-License-Identifier: Apache-2.0
"""Nova's records of moves and resizes: instances, migrations, instance actions, allocations.

A resize on the same host changes the limits in ``migrate_disk_and_power_off``, because that is the
only step after whose failure Nova restores flavor, claims and allocations.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import oslo_messaging
from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.compute import instance_actions, rpcapi, task_states, vm_states
from nova.scheduler.client import report
from oslo_log import log as logging
from oslo_utils import timeutils

from novadocker import privsep

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CutOffEvent:
    """An event of an instance action that a host began and did not end.

    :ivar request_id: the id of the request, which names the action
    """

    instance_uuid: str
    request_id: str
    action: str
    event: str
    start_time: datetime


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


def is_reverting(instance: objects.Instance) -> bool:
    """Return True if a move or a resize of an instance is being reverted."""
    return bool(instance.task_state == task_states.RESIZE_REVERTING)


def is_reverted_here(instance: objects.Instance) -> bool:
    """Return True if Nova destroys an instance because its resize on this host is reverted.

    Nova destroys the destination's instance, which after a resize on the same host is the only one.
    Nova's records show it, and outlive a restart of nova-compute.

    :raises MigrationNotFoundByStatus: the records do not show it; nothing may be destroyed then
    """
    if not is_reverting(instance):
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
    return bool(instance.host == host and not is_reverting(instance))


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
        begun = cut_off_events(instance.uuid, host, [action]) if action else ()
        if not action or event in {found.event for found in begun}:
            yield instance


def cut_off_events(
    instance_uuid: str, host: str, actions: Collection[str] | None = None
) -> tuple[CutOffEvent, ...]:
    """Return the events of an instance's last action that a host began and did not end.

    :param actions: if given, another last action has no events
    """
    context = nova_context.get_admin_context()
    last = objects.InstanceActionList.get_by_instance_uuid(context, instance_uuid, limit=1)
    if not last or (actions is not None and last[0].action not in actions):
        return ()
    events = objects.InstanceActionEventList.get_by_action(context, last[0].id)
    # If an event was done twice, Nova sets the end of the first one.
    ended = {event.event for event in events if event.finish_time}
    return tuple(
        CutOffEvent(
            instance_uuid=instance_uuid,
            request_id=last[0].request_id,
            action=last[0].action,
            event=event.event,
            start_time=event.start_time,
        )
        for event in events
        if event.host == host and event.event not in ended
    )


def end_event(event: CutOffEvent, failure: str | None) -> None:
    """Record the result of an event in which nova-compute died.

    :param failure: what the tenant reads; None if the event succeeded
    """
    context = nova_context.get_admin_context()
    # Nova finds the action by the id of the request.
    context.request_id = event.request_id
    try:
        objects.InstanceActionEvent.event_finish_with_failure(
            context,
            event.instance_uuid,
            event.event,
            exc_val=failure,
            # Nova takes an event without a traceback for a success.
            exc_tb=failure,
            want_result=False,
        )
    except (
        nova_exception.InstanceActionNotFound,
        nova_exception.InstanceActionEventNotFound,
    ) as error:
        LOG.debug("The action was deleted meanwhile: %s", error)


def note(
    context: nova_context.RequestContext, instance: objects.Instance, event: str, text: str
) -> None:
    """Tell the tenant something, in an event of the present action of an instance.

    Nova keeps a text only of an event that failed.
    """
    action = objects.InstanceActionEvent
    try:
        action.event_start(context, instance.uuid, event, want_result=False, host=instance.host)
        action.event_finish_with_failure(
            context, instance.uuid, event, exc_val=text, exc_tb=text, want_result=False
        )
    except (nova_exception.NovaException, oslo_messaging.MessagingException) as error:
        LOG.warning("Failed to record an event of the server: %s", error, instance=instance)


def ports_since(instance_uuid: str, start_time: datetime) -> Set[str]:
    """Return the ids of the ports that Nova has begun to allocate since a time."""
    context = nova_context.get_admin_context()
    found = objects.VirtualInterfaceList.get_by_instance_uuid(context, instance_uuid)
    return {vif.uuid for vif in found if vif.created_at >= start_time}


def deleted(uuids: Collection[str]) -> Iterable[objects.Instance]:
    """Return those of the instances that Nova has deleted and still knows."""
    if not uuids:
        return ()
    found: Iterable[objects.Instance] = objects.InstanceList.get_by_filters(
        nova_context.get_admin_context(read_deleted="yes"),
        {"uuid": list(uuids), "deleted": True, "soft_deleted": False},
    )
    return found


def gone(uuids: Collection[str], host: str) -> Set[str]:
    """Return the ids of those of the instances that are deleted, or live on another host.

    An instance that moves, or whose move is not confirmed, may still return to the host.
    """
    if not uuids:
        return frozenset()
    living: Iterable[objects.Instance] = objects.InstanceList.get_by_filters(
        nova_context.get_admin_context(), {"uuid": list(uuids), "deleted": False}
    )
    elsewhere = {
        instance.uuid
        for instance in living
        if instance.host != host
        and instance.vm_state != vm_states.RESIZED
        and instance.task_state is None
    }
    return elsewhere | {instance.uuid for instance in deleted(uuids)}


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
        begun = {
            found.event
            for found in cut_off_events(instance.uuid, host, [instance_actions.REVERT_RESIZE])
        }
        migration = _last_migration(context, instance)
        # Without request_spec resources, because only ports with a guaranteed bandwidth need them.
        if "compute_finish_revert_resize" in begun:
            compute.finish_revert_resize(context, instance, migration, host, None)
        elif "compute_revert_resize" in begun:
            compute.revert_resize(context, instance, migration, host, None)


def _last_migration(
    context: nova_context.RequestContext, instance: objects.Instance
) -> objects.Migration:
    found = objects.MigrationList.get_by_filters(context, {"instance_uuid": instance.uuid})
    return max(found, key=lambda migration: migration.id)
