# SPDX-License-Identifier: Apache-2.0
"""Limits -> a server, wherever each of them is set: by the engine or behind its back.

The engine keeps most limits itself. It knows nothing of the rates of disks that it was not
created with, nor of any network's, and forgets them at each start. So limits are enforced after
every start, and looked after now and then.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from oslo_concurrency import processutils
from oslo_log import log as logging
from pyroute2 import IPRoute

from novadocker import exception
from novadocker.linux import cgroup as linux_cgroup
from novadocker.privsep.guest import cgroup as guest_cgroup
from novadocker.privsep.network import tc
from novadocker.privsep.network.types import NetworkRate
from novadocker.privsep.storage import btrfs
from novadocker.state_files import port_rates
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.host import filesystem
from novadocker.virt.docker.limits import cgroup, disk
from novadocker.virt.docker.model import ContainerDetail, EngineInfo, Limits

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Duty:
    """What a running server must be held to.

    :ivar devices: the host end and the guest end of each VIF
    """

    instance_uuid: str
    container_id: str
    pid: int
    limits: Limits
    devices: tuple[tuple[str, str], ...]


class Enforcement:
    """Sets limits, and remembers those of running servers for ``sweep``.

    :param state_path: nova-compute's, where the rates of ports are left for the exporter
    """

    def __init__(self, engine: Engine, info: EngineInfo, state_path: Path) -> None:
        self._engine = engine
        self._state_path = state_path
        self._data_root = info.data_root
        self._disk = linux_cgroup.disk_of(filesystem.mount_of(info.data_root).device)
        self._resizes_disks = disk.can_resize(info)
        self._lock = threading.Lock()
        self._duties: dict[str, Duty] = {}

    def check_possible(self, limits: Limits) -> None:
        """Check that this host can hold a server to its limits.

        :raises InvalidLimits: it can't limit the rates of the disk
        """
        if self._disk is None and any(asdict(limits.disk).values()):
            raise exception.InvalidLimits(
                reason="the servers' disk on this host is on no device whose rates can be limited"
            )

    def enforce(
        self,
        instance_uuid: str,
        found: ContainerDetail,
        limits: Limits,
        devices: tuple[tuple[str, str], ...],
    ) -> None:
        """Hold a server to its limits; what is right already is left alone.

        One that does not run gets what the engine keeps; the rest follows when it starts. The
        size of the disk stays: see ``resize_disk``.

        :param devices: the host end and the guest end of each VIF
        :raises InvalidLimits: this host can't
        :raises LimitsNotKept: the kernel does not keep one of them
        :raises EngineError: the engine refuses one of them
        """
        self.limit_container(instance_uuid, found, limits, devices)
        if found.pid:
            self.limit_ports(instance_uuid, limits, devices)

    def limit_ports(
        self, instance_uuid: str, limits: Limits, devices: tuple[tuple[str, str], ...]
    ) -> None:
        """Hold the wired VIFs of a server to their rates, whether it runs or not.

        :raises LimitsNotKept: the kernel does not keep one of them
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
        except OSError as error:
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
        """Hold a server to its limits but for the rates of its VIFs: ``enforce`` in part.

        ``sweep`` looks after those, too.
        """
        self.check_possible(limits)
        with self._lock:
            self._duties.pop(instance_uuid, None)
        if not found.pid:
            self._engine.update_container(found.id, limits)
            return
        duty = Duty(instance_uuid, found.id, found.pid, limits, devices)
        try:
            self._hold_container(duty)
        except ProcessLookupError:
            # it has just ended
            self._engine.update_container(found.id, limits)
            return
        except OSError as error:
            raise exception.LimitsNotKept(reason=str(error)) from error
        finally:
            # what failed now may be made good later
            with self._lock:
                self._duties[instance_uuid] = duty

    def memory_in_use(self, found: ContainerDetail) -> int:
        """Return the bytes of memory that a server can't do without, 0 if it does not run."""
        try:
            return (
                cgroup.memory_in_use(linux_cgroup.groups(found.pid, found.id)) if found.pid else 0
            )
        except ProcessLookupError:
            return 0

    @property
    def resizes_disks(self) -> bool:
        """Whether the size of a disk can be changed."""
        return self._resizes_disks

    def disk_in_use(self, found: ContainerDetail) -> int:
        """Return the bytes of a server's disk that are in use, where ``resizes_disks``."""
        return disk.read_disk(self._data_root, found.id).used

    def resize_disk(self, found: ContainerDetail, size: int) -> None:
        """Make a server's disk ``size`` bytes large, unless it is.

        :raises LimitsNotKept: it can't be, or is not in the end
        """
        try:
            if disk.read_disk(self._data_root, found.id).size == size:
                return
            btrfs.resize_disk(self._data_root, found.id, size)
            kept = disk.read_disk(self._data_root, found.id).size
        except (OSError, processutils.ProcessExecutionError) as error:
            raise exception.LimitsNotKept(reason=str(error)) from error
        if kept != size:
            raise exception.LimitsNotKept(reason=f"the disk has {kept} bytes instead of {size}")

    def sweep(self) -> None:
        """Enforce again what somebody undid: a new process, or the switch that made way for QoS.

        Asks the kernel about each server, and the engine only about those that differ.
        """
        with self._lock:
            duties = list(self._duties.values())
        bare = _bare_devices(duties)
        for duty in duties:
            try:
                if bare.isdisjoint(host for host, _ in duty.devices) and not self._unmet(duty):
                    continue
                self._restore(duty)
            except (OSError, exception.LimitsNotKept, exception.EngineError) as error:
                LOG.warning("The limits of server %s are not kept: %s", duty.instance_uuid, error)

    def _restore(self, duty: Duty) -> None:
        try:
            found = self._engine.inspect_container(duty.container_id)
        except exception.ContainerNotFound:
            found = None
        with self._lock:
            if self._duties.get(duty.instance_uuid) is not duty:
                # somebody knows better by now
                return
            if found is None or not found.pid:
                del self._duties[duty.instance_uuid]
                return
            now = replace(duty, pid=found.pid)
            self._duties[duty.instance_uuid] = now
        LOG.info("The limits of server %s were gone: setting them again", duty.instance_uuid)
        self._hold_container(now)
        self.limit_ports(now.instance_uuid, now.limits, now.devices)

    def _unmet(self, duty: Duty) -> bool:
        try:
            groups = linux_cgroup.groups(duty.pid, duty.container_id)
        except ProcessLookupError:
            return True
        return bool(cgroup.unmet(groups, cgroup.settled(groups, duty.limits))) or (
            self._disk is not None
            and linux_cgroup.read_disk_rates(groups, self._disk) != duty.limits.disk
        )

    def _hold_container(self, duty: Duty) -> None:
        groups = linux_cgroup.groups(duty.pid, duty.container_id)
        limits = cgroup.settled(groups, duty.limits)
        if cgroup.unmet(groups, limits):
            if groups.version == 2:
                guest_cgroup.reclaim_memory(duty.pid, duty.container_id, limits.memory_bytes)
            self._engine.update_container(duty.container_id, limits)
        if (
            self._disk is not None
            and linux_cgroup.read_disk_rates(groups, self._disk) != limits.disk
        ):
            guest_cgroup.set_disk_rates(
                duty.container_id, duty.pid, self._disk, asdict(limits.disk)
            )
        if wrong := cgroup.unmet(groups, limits):
            raise exception.LimitsNotKept(
                reason=", ".join(f"{file} is {value}" for file, value in wrong.items())
            )


def _average(rate: NetworkRate | None) -> int | None:
    return rate.average if rate else None


def _bare_devices(duties: Sequence[Duty]) -> set[str]:
    """Return those host ends that should have a rate and do not; needs no privilege."""
    wanted = {
        host: duty.limits.inbound
        for duty in duties
        if duty.limits.inbound
        for host, _ in duty.devices
    }
    if not wanted:
        return set()
    with IPRoute() as netlink:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in netlink.get_links()}
        rated = {index: wanted[name] for index, name in names.items() if name in wanted}
        lacking = tc.lacking(list(netlink.get_qdiscs()), rated)
    return {names[index] for index in lacking}
