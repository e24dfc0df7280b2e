# SPDX-License-Identifier: Apache-2.0
"""Resize: what a change of a server's limits must not break, and the way back.

On the same host the container stays what it is and its limits change under it. They do so in
``migrate_disk_and_power_off``, the one step after which Nova can put everything back: flavor,
claims and allocations. The later steps find them set.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict

from nova import context as nova_context
from nova import exception as nova_exception
from nova import objects
from nova.compute import instance_actions, rpcapi, task_states, vm_states
from nova.scheduler.client import report
from oslo_utils import timeutils, units

from novadocker import exception
from novadocker.virt.docker.limits.enforcement import Enforcement
from novadocker.virt.docker.model import ContainerDetail, Isolation, Limits

# what the source tells the destination, as text since it travels in a message of Nova's
DISK_INFO = json.dumps({"version": 1, "same_host": True})


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


def refuse_disks(flavor: objects.Flavor, volumes: Sequence[object]) -> None:
    """Refuse disks that the driver does not provide.

    :raises ResizeRefused: there are volumes, or the flavor has an ephemeral disk
    """
    if volumes or flavor.ephemeral_gb:
        what = "volumes" if volumes else "an ephemeral disk"
        raise exception.ResizeRefused(reason=f"The Docker driver does not provide {what}")


def check_isolation(old: Isolation, new: Isolation) -> None:
    """Check that nothing changes that can't while a server lives.

    :raises ResizeRefused: something does
    """
    for name, value in asdict(old).items():
        if asdict(new)[name] != value:
            raise exception.ResizeRefused(
                reason=f"The flavors differ in {name.replace('_', ' ')}, which a server keeps for "
                "life; nothing was changed"
            )


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


def new_topology(instance: objects.Instance) -> objects.InstanceNUMATopology | None:
    """Return the CPUs that Nova claimed for the flavor to come."""
    claimed = instance.migration_context
    return claimed.new_numa_topology if claimed else instance.numa_topology


def old_topology(instance: objects.Instance) -> objects.InstanceNUMATopology | None:
    """Return the CPUs that a server had before its resize."""
    claimed = instance.migration_context
    return claimed.old_numa_topology if claimed else instance.numa_topology


def check_fits(enforcement: Enforcement, found: ContainerDetail, old: Limits, new: Limits) -> None:
    """Check that a server can have other limits, before anything changes.

    :raises InvalidLimits: this host can't hold a server to them
    :raises ResizeRefused: it uses more already, or this host can't change the size of its disk
    """
    enforcement.check_possible(new)
    used = enforcement.memory_in_use(found)
    if used > new.memory_bytes:
        raise exception.ResizeRefused(
            reason=f"The server uses {_mib(used)} MiB of memory, more than the "
            f"{new.memory_bytes // units.Mi} MiB of the flavor; nothing was changed"
        )
    if old.disk_bytes == new.disk_bytes:
        return
    if not enforcement.resizes_disks or not new.disk_bytes:
        raise exception.ResizeRefused(
            reason=f"The disk can't be changed from {_gib(old)} to {_gib(new)} on this host"
        )
    disk = enforcement.disk_in_use(found)
    if disk > new.disk_bytes:
        raise exception.ResizeRefused(
            reason=f"The server uses {_mib(disk)} MiB of its disk, more than the "
            f"{new.disk_bytes // units.Mi} MiB of the flavor; nothing was changed"
        )


def change(
    enforcement: Enforcement,
    instance_uuid: str,
    found: ContainerDetail,
    old: Limits,
    new: Limits,
    devices: tuple[tuple[str, str], ...],
) -> None:
    """Change a server's limits; if one of them can't be, all are as before.

    :param devices: the host end and the guest end of each VIF
    """
    with ExitStack() as undo:
        undo.callback(set_limits, enforcement, instance_uuid, found, old, devices)
        enforcement.enforce(instance_uuid, found, new, devices)
        if old.disk_bytes != new.disk_bytes:
            enforcement.resize_disk(found, new.disk_bytes)
        undo.pop_all()


def set_limits(
    enforcement: Enforcement,
    instance_uuid: str,
    found: ContainerDetail,
    limits: Limits,
    devices: tuple[tuple[str, str], ...],
) -> None:
    """Set a server's limits, with the size of its disk."""
    enforcement.enforce(instance_uuid, found, limits, devices)
    if limits.disk_bytes and enforcement.resizes_disks:
        enforcement.resize_disk(found, limits.disk_bytes)


def _mib(size: int) -> int:
    # rounded up, so that what is more looks like more
    return -(-size // (1 << 20))


def _gib(limits: Limits) -> str:
    return f"{limits.disk_bytes // units.Gi} GiB" if limits.disk_bytes else "no limit"
