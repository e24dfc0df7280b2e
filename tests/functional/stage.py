# SPDX-License-Identifier: Apache-2.0
"""``DockerDriver`` in place of Nova's fake drivers, on fakes of the modules below it."""

import functools
import ipaddress
import sys
import zlib
from dataclasses import dataclass
from typing import Any

import fixtures
from nova.tests.functional.integrated_helpers import InstanceHelperMixin
from nova.virt import driver as nova_driver
from nova.virt import fake as nova_fake
from oslo_utils import units
from oslo_utils.fixture import uuidsentinel as uuids

from novadocker.virt.docker import driver as driver_module
from novadocker.virt.docker.host import resources as host_facts
from novadocker.virt.docker.host import topology
from novadocker.virt.docker.host.topology import Cell
from novadocker.virt.docker.model import EngineInfo
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


class Bystander:
    """A replacement for an object that works in its own thread."""

    def __init__(self, *_args: object) -> None:
        pass

    def start(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


@dataclass(frozen=True, kw_only=True)
class HostInfo(EngineInfo):
    """An engine's description of a host, and the size of the host's disk."""

    disk_gb: int


class StagedDriver(driver_module.DockerDriver):
    """The driver on one of several hosts in one process, with the size of a fake driver's host."""

    def __init__(self, virtapi: Any, size: type[nova_fake.FakeDriver]) -> None:
        super().__init__(virtapi)
        self._host_name = self._node.name
        self._engine.info_ = HostInfo(
            **{
                **vars(fakes.INFO),
                "cpus": size.vcpus,
                "memory_bytes": size.memory_mb * units.Mi,
                "disk_gb": size.local_gb,
            }
        )
        self._size = size

    def init_host(self, host: str) -> None:
        """Start on a host; in Nova's samples, the node of the host ``compute`` has another name."""
        super().init_host(host)
        self._host_name = host
        self._node.name = "fake-mini" if host == "compute" else host
        self._node.cells = (
            Cell(
                id=0,
                cores=frozenset(frozenset([cpu]) for cpu in range(self._size.vcpus)),
                sockets=frozenset([0]),
                memory_kb=self._size.memory_mb * units.Ki,
            ),
        )
        self._node.cpu_sets = topology.cpu_sets(self._node.cells)

    def get_nodenames_by_uuid(self, refresh: bool = False) -> dict[str, str]:
        """Return the node's uuid without its file, because all hosts would read the same file."""
        return {self._node_uuid(): self._node.name}

    def get_available_resource(self, nodename: str) -> dict[str, object]:
        """Return the host's resources, with the node's uuid."""
        return {**super().get_available_resource(nodename), "uuid": self._node_uuid()}

    def _node_uuid(self) -> str:
        return str(getattr(uuids, f"node_{self._node.name}"))

    def get_host_ip_addr(self) -> str:
        """Return this host's own address, by which the driver distinguishes hosts."""
        return str(_HOSTS[zlib.crc32(self._host_name.encode()) % _HOSTS.num_addresses])


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

    @property
    def booted(self) -> int:
        """The number of started containers."""
        calls = [call for engine in self.engines for call in engine.calls]
        return sum(call[0] == "start" for call in calls)

    def _setUp(self) -> None:
        network = fakes.FakeNetwork()
        for name, stand_in in {
            "Engine": self._engine,
            "vifs": network,
            "netns": network,
            "interior": fakes.FakeInterior(),
            "Lxcfs": fakes.FakeLxcfs,
            "Loads": fakes.FakeLoads,
            "Events": Bystander,
            "drives": fakes.FakeDrives(),
            "transfer": fakes.FakeTransfer(),
            "Enforcement": lambda *_: fakes.FakeEnforcement(),
            "ImageStore": fakes.FakeImages,
        }.items():
            for module, own in fakes.places(name):
                self.useFixture(fixtures.MockPatchObject(module, own, stand_in))
        for target, stand_in in {
            f"{topology.__name__}.read_cells": lambda: fakes.CELLS,
            f"{host_facts.__name__}.read_resources": read_resources,
            # This directory exists for a wheel; Nova's default exists only in a checkout.
            "nova.tests.fixtures.conf.paths.state_path_def": f"{sys.prefix}/{{}}".format,
        }.items():
            self.useFixture(fixtures.MonkeyPatch(target, stand_in))
        # The driver refuses ephemeral disks, which Nova's test flavors have by default.
        flavors = functools.partialmethod(InstanceHelperMixin._create_flavor, ephemeral=0)
        self.useFixture(fixtures.MockPatchObject(InstanceHelperMixin, "_create_flavor", flavors))
        original = nova_driver.load_compute_driver

        def load(virtapi: Any, compute_driver: str | None = None) -> Any:
            name = (compute_driver or nova_driver.CONF.compute_driver).rpartition(".")[2]
            if name in REPLACED:
                return StagedDriver(virtapi, getattr(nova_fake, name))
            return original(virtapi, compute_driver)

        self.useFixture(fixtures.MonkeyPatch(f"{nova_driver.__name__}.load_compute_driver", load))

    def _engine(self, *_args: object) -> fakes.FakeEngine:
        engine = fakes.FakeEngine()
        self.engines.append(engine)
        return engine
