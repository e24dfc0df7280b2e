# SPDX-License-Identifier: Apache-2.0
"""Enforcement of an instance's limits: by the engine, in control groups, and at devices of ports.

The engine keeps most limits. It can't change a container's disk rates and has no network rates, and
a start of the container resets both. So the driver sets the limits after every start, and checks
them periodically.
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from oslo_concurrency import processutils
from oslo_log import log as logging

from novadocker import exception, privsep
from novadocker.linux import cgroup as linux_cgroup
from novadocker.linux.threads import Failures
from novadocker.privsep.guest import cgroup as guest_cgroup
from novadocker.privsep.network import tc
from novadocker.privsep.network.types import NetworkRate
from novadocker.privsep.storage import btrfs
from novadocker.state_files import port_rates
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.engine.connection import PATIENCE
from novadocker.virt.docker.host import filesystem
from novadocker.virt.docker.limits import cgroup, disk
from novadocker.virt.docker.model import ContainerDetail, EngineInfo, Limits

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LimitedServer:
    """A running instance and the limits to enforce.

    :ivar devices: names of the host end and the guest end of each VIF
    """

    instance_uuid: str
    container_id: str
    pid: int
    limits: Limits
    devices: tuple[tuple[str, str], ...]


class Enforcement:
    """Sets limits, and stores those of running instances for ``sweep``.

    :param state_path: nova-compute's state path, where the exporter reads the rates of ports
    """

    def __init__(self, engine: Engine, info: EngineInfo, state_path: Path) -> None:
        self._engine = engine
        self._state_path = state_path
        self._data_root = info.data_root
        self._disk = linux_cgroup.disk_of(filesystem.mount_of(filesystem.layers_root(info)).device)
        self._resizes_disks = disk.can_resize(info)
        self._lock = threading.Lock()
        self._servers: dict[str, LimitedServer] = {}
        self._failures = Failures(
            "Failed to restore the limits of server",
            (OSError, exception.LimitsNotKept, exception.EngineError, *privsep.UNANSWERED),
        )

    def check_possible(self, limits: Limits) -> None:
        """Check that this host can enforce the limits.

        :raises InvalidLimits: the host can't limit the rates of the disk
        """
        if self._disk is None and any(asdict(limits.disk).values()):
            raise exception.InvalidLimits(
                reason="this host keeps disks on no block device, so it can't limit their rates"
            )

    def enforce(
        self,
        instance_uuid: str,
        found: ContainerDetail,
        limits: Limits,
        devices: tuple[tuple[str, str], ...],
    ) -> None:
        """Set an instance's limits where they differ.

        If the instance does not run, only the engine's limits are set; the others follow after its
        start. The size of the disk does not change: see ``resize_disk``.

        :param devices: names of the host end and the guest end of each VIF
        :raises InvalidLimits: this host can't enforce a limit
        :raises LimitsNotKept: the kernel does not keep a limit
        :raises EngineError: the engine refuses a limit
        """
        self.limit_container(instance_uuid, found, limits, devices)
        if found.pid:
            self.limit_ports(instance_uuid, limits, devices)

    def limit_ports(
        self, instance_uuid: str, limits: Limits, devices: tuple[tuple[str, str], ...]
    ) -> None:
        """Set the rates of an instance's VIFs, whether the instance runs or not.

        :raises LimitsNotKept: the kernel does not keep a rate
        """
        if not devices:
            return
        try:
            tc.set_port_rates(
                instance_uuid,
                devices,
                asdict(limits.inbound) if limits.inbound else None,
                asdict(limits.outbound) if limits.outbound else None,
            )
        except (OSError, *privsep.UNANSWERED) as error:
            raise exception.LimitsNotKept(reason=str(error)) from error
        port_rates.tell(
            self._state_path,
            instance_uuid,
            devices,
            port_rates.PortRate(_average(limits.inbound), _average(limits.outbound)),
        )

    def limit_container(
        self,
        instance_uuid: str,
        found: ContainerDetail,
        limits: Limits,
        devices: tuple[tuple[str, str], ...],
    ) -> None:
        """Set an instance's limits except for the rates of its VIFs; otherwise like ``enforce``.

        ``sweep`` also restores the rates of the VIFs.
        """
        self.check_possible(limits)
        with self._lock:
            self._servers.pop(instance_uuid, None)
        if not found.pid:
            self._engine.update_container(found.id, limits)
            return
        server = LimitedServer(instance_uuid, found.id, found.pid, limits, devices)
        try:
            self._apply(server)
        except ProcessLookupError:
            # The instance has just stopped.
            self._engine.update_container(found.id, limits)
            return
        except (OSError, *privsep.UNANSWERED) as error:
            raise exception.LimitsNotKept(reason=str(error)) from error
        finally:
            # Stored even after a failure, so that sweep tries again.
            with self._lock:
                self._servers[instance_uuid] = server

    def memory_in_use(self, found: ContainerDetail) -> int:
        """Return the bytes of an instance's memory that can't be reclaimed; 0 if it is stopped."""
        try:
            return (
                cgroup.memory_in_use(linux_cgroup.groups(found.pid, found.id)) if found.pid else 0
            )
        except ProcessLookupError:
            return 0

    @property
    def resizes_disks(self) -> bool:
        """Whether the size of a disk can change."""
        return self._resizes_disks

    def disk_in_use(self, found: ContainerDetail) -> int:
        """Return the usage of an instance's disk in bytes; needs ``resizes_disks``."""
        return disk.read_disk(self._data_root, found.id).used

    def resize_disk(self, found: ContainerDetail, size: int) -> None:
        """Set the size of an instance's disk in bytes. Idempotent.

        :raises LimitsNotKept: the size can't be set, or the kernel does not keep it
        """
        try:
            if disk.read_disk(self._data_root, found.id).size == size:
                return
            btrfs.resize_disk(self._data_root, found.id, size)
            kept = disk.read_disk(self._data_root, found.id).size
        except (OSError, processutils.ProcessExecutionError, *privsep.UNANSWERED) as error:
            raise exception.LimitsNotKept(reason=str(error)) from error
        if kept != size:
            raise exception.LimitsNotKept(reason=f"the disk has {kept} bytes instead of {size}")

    def sweep(self) -> None:
        """Restore limits that are lost after a restart of the container or by a change of a switch.

        Open vSwitch, for one, replaces the queueing discipline of a port that gets a QoS policy.
        Reads the limits of each instance from the kernel, and asks the engine only about instances
        whose limits differ. A server that fails does not affect the others.

        :raises OSError: the queueing disciplines cannot be read
        """
        with self._lock:
            servers = list(self._servers.values())
        self._failures.keep(server.instance_uuid for server in servers)
        unlimited = tc.devices_without_rate(
            {
                host: server.limits.inbound
                for server in servers
                if server.limits.inbound
                for host, _ in server.devices
            }
        )
        for server in servers:
            with self._failures.of(server.instance_uuid):
                is_limited = unlimited.isdisjoint(host for host, _ in server.devices)
                if is_limited and not self._differs(server):
                    continue
                self._restore(server)

    def _restore(self, server: LimitedServer) -> None:
        try:
            with self._engine.within(PATIENCE):
                found = self._engine.inspect_container(server.container_id)
        except exception.ContainerNotFound:
            found = None
        with self._lock:
            if self._servers.get(server.instance_uuid) is not server:
                # An operation has set or removed the limits meanwhile.
                return
            if found is None or not found.pid:
                del self._servers[server.instance_uuid]
                return
            now = replace(server, pid=found.pid)
            self._servers[server.instance_uuid] = now
        self._apply(now)
        self.limit_ports(now.instance_uuid, now.limits, now.devices)
        LOG.info(
            "Restored the limits of the instance, which differed from its flavor",
            instance_uuid=server.instance_uuid,
        )

    def _differs(self, server: LimitedServer) -> bool:
        try:
            groups = linux_cgroup.groups(server.pid, server.container_id)
        except ProcessLookupError:
            return True
        limits = cgroup.with_cpuset(groups, server.limits)
        return bool(cgroup.differences(groups, limits)) or (
            self._disk is not None
            and linux_cgroup.read_disk_rates(groups, self._disk) != limits.disk
        )

    def _apply(self, server: LimitedServer) -> None:
        groups = linux_cgroup.groups(server.pid, server.container_id)
        limits = cgroup.with_cpuset(groups, server.limits)
        if cgroup.differences(groups, limits):
            if groups.version == 2:
                guest_cgroup.reclaim_memory(server.pid, server.container_id, limits.memory_bytes)
            self._engine.update_container(server.container_id, limits)
        if (
            self._disk is not None
            and linux_cgroup.read_disk_rates(groups, self._disk) != limits.disk
        ):
            guest_cgroup.set_disk_rates(
                server.container_id, server.pid, self._disk, asdict(limits.disk)
            )
        if wrong := cgroup.differences(groups, limits):
            raise exception.LimitsNotKept(
                reason=", ".join(f"{file} is {value}" for file, value in wrong.items())
            )


def _average(rate: NetworkRate | None) -> int | None:
    return rate.average if rate else None
