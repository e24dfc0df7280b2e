# SPDX-License-Identifier: Apache-2.0
"""A resize on the same host: the container stays and its limits change."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict

from nova import exception as nova_exception
from nova import objects
from nova.network import model as network_model
from oslo_log import log as logging
from oslo_utils import units

from novadocker import exception
from novadocker.conf import CONF
from novadocker.virt.docker.limits import flavor as flavor_limits
from novadocker.virt.docker.limits import isolation
from novadocker.virt.docker.model import ContainerDetail, Isolation, Limits
from novadocker.virt.docker.operations.ports import device_pairs
from novadocker.virt.docker.operations.power import Power
from novadocker.virt.docker.operations.protocols import Enforcement
from novadocker.virt.docker.operations.services import Services
from novadocker.virt.docker.operations.volumes import BlockDevices, Volumes

LOG = logging.getLogger(__name__)


class Resize:
    """Changes the limits of the instances of one host."""

    def __init__(self, services: Services, power: Power, volumes: Volumes) -> None:
        self._services = services
        self._power = power
        self._volumes = volumes

    def begin(
        self,
        instance: objects.Instance,
        flavor: objects.Flavor,
        network_info: network_model.NetworkInfo,
        block_devices: BlockDevices,
    ) -> None:
        """Set the limits of another flavor. The instance keeps its power state.

        Takes the volumes away whose connections end with Nova's attachments; ``finish`` gives them
        back.

        :raises ResizeRefused: the instance cannot have these limits; they are unchanged
        """
        rules = self._services.rules(instance)
        present = flavor_limits.asked(instance, instance.flavor, rules)
        check_isolation(
            isolation.of_present(present, self._services.has_user_namespace(instance)),
            isolation.isolation(flavor_limits.asked(instance, flavor, rules)),
        )
        old = flavor_limits.instance_limits(instance, rules)
        new = flavor_limits.limits_for(instance, flavor, new_topology(instance), rules)
        with ExitStack() as undo:
            undo.callback(self._volumes.connect, instance, block_devices)
            try:
                self._volumes.part_with_remote(instance, block_devices)
            except nova_exception.DeviceDetachFailed as error:
                raise exception.ResizeRefused(reason=error.format_message()) from error
            self._change(instance, old, new, network_info)
            undo.pop_all()

    def finish(
        self,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
        block_devices: BlockDevices,
    ) -> None:
        """Set the limits of the instance's flavor, which is the new one now. Idempotent.

        A failure sets the limits of the old flavor.
        """
        rules = self._services.rules(instance)
        old = flavor_limits.limits_for(instance, instance.old_flavor, old_topology(instance), rules)
        found = self._services.find(instance)
        devices = device_pairs(instance, network_info)
        with ExitStack() as undo:
            undo.callback(
                set_limits, self._services.enforcement, instance.uuid, found, old, devices
            )
            self._volumes.connect(instance, block_devices)
            new = flavor_limits.instance_limits(instance, rules)
            self._change(instance, old, new, network_info)
            undo.pop_all()

    def revert(
        self,
        found: ContainerDetail,
        instance: objects.Instance,
        network_info: network_model.NetworkInfo,
    ) -> None:
        """Set the limits of the instance's flavor, which is the old one again. Idempotent.

        Restarts an instance that uses more memory than the old flavor has, because a virtual
        machine would be restarted, too.
        """
        most = flavor_limits.limits_for(
            instance, instance.flavor, old_topology(instance), self._services.rules(instance)
        )
        devices = device_pairs(instance, network_info)
        enforcement = self._services.enforcement
        crowded = enforcement.memory_in_use(found) > most.memory_bytes
        if crowded:
            LOG.warning(
                "Restarting the instance, which uses more memory than the old flavor has",
                instance=instance,
            )
            self._power.stop_processes(found, CONF.shutdown_timeout)
            found = self._services.find(instance)
        set_limits(enforcement, instance.uuid, found, most, devices)
        if crowded:
            self._power.start(found, instance, network_info)

    def _change(
        self,
        instance: objects.Instance,
        old: Limits,
        new: Limits,
        network_info: network_model.NetworkInfo,
    ) -> None:
        found = self._services.find(instance)
        enforcement = self._services.enforcement
        check_fits(enforcement, found, old, new)
        devices = device_pairs(instance, network_info)
        change(enforcement, instance.uuid, found, old, new, devices)


def check_isolation(old: Isolation, new: Isolation) -> None:
    """Check that two flavors have the same isolation, which cannot change in a server's life.

    :raises ResizeRefused: the isolation differs
    """
    for name, value in asdict(old).items():
        if asdict(new)[name] != value:
            raise exception.ResizeRefused(
                reason=f"The flavors differ in {name.replace('_', ' ')}, which cannot change in a "
                "server's life; nothing was changed"
            )


def new_topology(instance: objects.Instance) -> objects.InstanceNUMATopology | None:
    """Return the CPUs that Nova claimed for the new flavor."""
    claimed = instance.migration_context
    return claimed.new_numa_topology if claimed else instance.numa_topology


def old_topology(instance: objects.Instance) -> objects.InstanceNUMATopology | None:
    """Return the CPUs that a server had before its resize."""
    claimed = instance.migration_context
    return claimed.old_numa_topology if claimed else instance.numa_topology


def check_fits(enforcement: Enforcement, found: ContainerDetail, old: Limits, new: Limits) -> None:
    """Check that a server can have new limits, before anything changes.

    :raises InvalidLimits: this host cannot enforce the new limits
    :raises ResizeRefused: the server uses more already, or this host cannot resize its disk
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
    """Change a server's limits. If one cannot be changed, restore all of them.

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
    """Set a server's limits and the size of its disk. Idempotent."""
    enforcement.enforce(instance_uuid, found, limits, devices)
    if limits.disk_bytes and enforcement.resizes_disks:
        enforcement.resize_disk(found, limits.disk_bytes)


def _mib(size: int) -> int:
    # Rounded up, so that a size above the limit never looks equal to the limit.
    return -(-size // (1 << 20))


def _gib(limits: Limits) -> str:
    return f"{limits.disk_bytes // units.Gi} GiB" if limits.disk_bytes else "no limit"
