# SPDX-License-Identifier: Apache-2.0
"""``DockerDriver`` in place of Nova's fake drivers, on fakes of the modules below it."""

import contextlib
import functools
import ipaddress
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fixtures
from nova.tests.functional.integrated_helpers import InstanceHelperMixin
from nova.virt import driver as nova_driver
from nova.virt import fake as nova_fake
from oslo_utils import units
from oslo_utils.fixture import uuidsentinel as uuids

from novadocker.virt.docker.driver import DockerDriver
from novadocker.virt.docker.host import resources as host_facts
from novadocker.virt.docker.host import topology
from novadocker.virt.docker.host.topology import Cell
from novadocker.virt.docker.migration import expected, nova_records
from novadocker.virt.docker.migration.disk_info import Move
from novadocker.virt.docker.model import EngineInfo
from novadocker.virt.docker.network import device_names, device_tags
from tests.unit import fakes

REPLACED = (
    "FakeDriver",
    "SmallFakeDriver",
    "MediumFakeDriver",
    "FakeDriverWithCaching",
    "FakeDriverWithoutFakeNodes",
)
"""Nova's fake drivers that only simulate a host of some size.

The other fake drivers fail at some operation, or simulate a feature such as live migration.
"""

_HOSTS = ipaddress.ip_network("10.0.0.0/8")


@dataclass(frozen=True, kw_only=True)
class HostInfo(EngineInfo):
    """An engine's description of a host, and the size of the host's disk."""

    disk_gb: int


class StagedDriver(DockerDriver):
    """The driver on one of several hosts in one process, with the size of a fake driver's host.

    :ivar host_name: the host's name in Nova
    """

    def __init__(self, virtapi: Any, host: fakes.FakeHost) -> None:
        super().__init__(virtapi, host.collaborators())
        self.host_name = self._services.name

    def init_host(self, host: str) -> None:
        """Start on a host; in Nova's samples, the node of the host ``compute`` has another name."""
        super().init_host(host)
        self.host_name = host
        self._services.name = "fake-mini" if host == "compute" else host

    def get_nodenames_by_uuid(self, refresh: bool = False) -> dict[str, str]:
        """Return the node's uuid without its file, because all hosts would read the same file."""
        return {self._node_uuid(): self._services.name}

    def get_available_resource(self, nodename: str) -> dict[str, object]:
        """Return the host's resources, with the node's uuid."""
        return {**super().get_available_resource(nodename), "uuid": self._node_uuid()}

    def _node_uuid(self) -> str:
        return str(getattr(uuids, f"node_{self._services.name}"))

    def get_host_ip_addr(self) -> str:
        """Return this host's own address, by which the driver distinguishes hosts."""
        return str(_HOSTS[zlib.crc32(self.host_name.encode()) % _HOSTS.num_addresses])


class StagedTransfer(fakes.FakeTransfer):
    """Transfers before which the destination asks Nova, as ``novadocker-receive`` does.

    :ivar drivers: of all hosts
    """

    def __init__(self) -> None:
        super().__init__()
        self.drivers: list[StagedDriver] = []

    @contextlib.contextmanager
    def session(
        self, command: object, host: str, transport: object, instance_uuid: str, *more: Any
    ) -> Iterator[tuple[fakes.FakeTransfer, Move]]:
        """Open a session with a host that expects the instance."""
        names = {found.get_host_ip_addr(): found.host_name for found in self.drivers}
        expected.read_most_bytes(instance_uuid, names[host])
        with super().session(command, host, transport, instance_uuid, *more) as opened:
            yield opened


def read_resources(info: HostInfo, sets: topology.CpuSets) -> host_facts.Resources:
    """Return a host's resources without reading this machine's disk."""
    return host_facts.Resources(
        vcpus=len(sets.shared),
        pcpus=len(sets.dedicated),
        memory_mb=info.memory_bytes // units.Mi,
        disk_gb=info.disk_gb,
        disk_free_gb=info.disk_gb,
    )


class Stage(fixtures.Fixture):  # type: ignore[misc]
    """A fixture that makes Nova load ``StagedDriver``.

    :ivar engines: the engine of each loaded driver.
    """

    def __init__(self) -> None:
        super().__init__()
        self.engines: list[fakes.FakeEngine] = []
        self._network = fakes.FakeNetwork()
        self._drives = fakes.FakeDrives()
        self._transfer = StagedTransfer()

    @property
    def booted(self) -> int:
        """The number of started containers."""
        calls = [call for engine in self.engines for call in engine.calls]
        return sum(call[0] == "start" for call in calls)

    def _setUp(self) -> None:
        # This directory exists for a wheel; Nova's default exists only in a checkout.
        paths = "nova.tests.fixtures.conf.paths.state_path_def"
        self.useFixture(fixtures.MonkeyPatch(paths, f"{sys.prefix}/{{}}".format))
        # The driver refuses ephemeral disks, which Nova's test flavors have by default.
        flavors = functools.partialmethod(InstanceHelperMixin._create_flavor, ephemeral=0)
        self.useFixture(fixtures.MockPatchObject(InstanceHelperMixin, "_create_flavor", flavors))
        original = nova_driver.load_compute_driver

        def load(virtapi: Any, compute_driver: str | None = None) -> Any:
            name = (compute_driver or nova_driver.CONF.compute_driver).rpartition(".")[2]
            if name in REPLACED:
                made = StagedDriver(virtapi, self._host(getattr(nova_fake, name)))
                self._transfer.drivers.append(made)
                return made
            return original(virtapi, compute_driver)

        self.useFixture(fixtures.MonkeyPatch(f"{nova_driver.__name__}.load_compute_driver", load))

    def _host(self, size: type[nova_fake.FakeDriver]) -> fakes.FakeHost:
        """Return the fakes of a host with the size of a fake driver's host."""
        info = HostInfo(
            **{
                **vars(fakes.INFO),
                "cpus": size.vcpus,
                "memory_bytes": size.memory_mb * units.Mi,
                "disk_gb": size.local_gb,
            }
        )
        cell = Cell(
            id=0,
            cores=frozenset(frozenset([cpu]) for cpu in range(size.vcpus)),
            sockets=frozenset([0]),
            memory_kb=size.memory_mb * units.Ki,
        )
        engine = fakes.FakeEngine(info_=info)
        self.engines.append(engine)
        return fakes.FakeHost(
            engine=engine,
            network=self._network,
            drives=self._drives,
            transfer=self._transfer,
            nova_records=nova_records,
            device_metadata=device_tags.device_metadata,
            read_instance=device_names.read_instance,
            cells=(cell,),
            read_resources=read_resources,
        )
