# SPDX-License-Identifier: Apache-2.0
"""Boots and resizes of containers, with the duration of each part; for a worker's process.

Nova's objects must be registered before this import, because the driver's signatures name them.
"""

import contextlib
import itertools
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import docker
import os_vif
from nova import context as nova_context
from nova import objects
from nova.network import model

from benchmarks import periodic
from benchmarks.stopwatch import Stopwatch
from novadocker import naming
from novadocker.conf import CONF
from novadocker.privsep.guest import cgroup, runtime
from novadocker.privsep.network import namespace
from novadocker.virt.docker.driver import DockerDriver
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.host import service_status
from novadocker.virt.docker.images.store import ImageStore
from novadocker.virt.docker.migration import nova_records
from novadocker.virt.docker.network import device_tags

# The same families as the cloud's network "private", in ranges reserved for documentation.
_SUBNETS = (("192.0.2.0/24", "192.0.2.{}"), ("2001:db8::/64", "2001:db8::{:x}"))
_FIRST_HOST, _HOSTS = 10, 200
_MTU = 1450
_FLAVOR = {
    **{"name": "benchmark", "vcpus": 1, "memory_mb": 256, "root_gb": 1},
    **{"ephemeral_gb": 0, "swap": 0, "extra_specs": {}},
}


class _NoEvents:
    """A replacement for Nova's ``virtapi`` that does not wait for Neutron's events."""

    @contextlib.contextmanager
    def wait_for_instance_event(self, *_arguments: Any) -> Iterator[None]:
        yield


class Booter:
    """Boots containers from one image and keeps them until ``clear``.

    :param image: Glance's record of the image
    :param bridge: the Open vSwitch bridge for the servers' ports
    """

    def __init__(self, host: str, image: dict[str, Any], bridge: str) -> None:
        self._context = nova_context.get_admin_context()
        self._image = objects.ImageMeta.from_dict(image)
        self._image_name = f"novadocker/{image['id']}:{image['checksum'][:12]}"
        self._numbers = itertools.count()
        self._bare: list[str] = []
        self._servers: list[tuple[objects.Instance, model.NetworkInfo]] = []
        self._client = docker.APIClient(
            CONF.docker.api_url, version="auto", timeout=CONF.docker.api_timeout
        )
        # Without Nova's database, ports have no tags, there are no interrupted moves, and the host
        # has no service.
        setattr(device_tags, "device_metadata", lambda *_: None)  # noqa: B010
        setattr(nova_records, "resume_cut_off", lambda *_: None)  # noqa: B010
        setattr(service_status, "set_enabled", lambda *_: None)  # noqa: B010
        # The host's nova-compute holds the claim.
        setattr(Engine, "claim", lambda *_: None)  # noqa: B010
        self._driver = DockerDriver(_NoEvents())
        self._driver.init_host(host)
        self._host = host
        self._bridge = bridge
        self._stopwatch = Stopwatch()
        for owner, function, part in (
            (ImageStore, "ensure", "image"),
            (Engine, "create_container", "create"),
            (namespace, "wire_nics", "wiring: namespace and devices"),
            (os_vif, "plug", "wiring: switch port"),
            (runtime, "create_own_namespace", "user namespace"),
            (runtime, "bind_container", "record and files for the runtime"),
            (Engine, "start_container", "start"),
            (Engine, "wait_container", "watch the first process"),
            (Engine, "inspect_container", "look at the container"),
            (Engine, "update_container", "limits that the engine sets"),
            (cgroup, "set_port_rates", "rates of ports"),
            (cgroup, "set_disk_rates", "rates of the disk"),
        ):
            self._stopwatch.watch(owner, function, part)

    def raw(self) -> dict[str, Any]:
        """Run the equivalent of ``docker create --tty --network none`` and ``docker start``."""
        begin = time.perf_counter()
        container = self._client.create_container(
            self._image_name,
            tty=True,
            stdin_open=True,
            host_config=self._client.create_host_config(network_mode="none"),
        )["Id"]
        self._bare.append(container)
        created = time.perf_counter()
        self._client.start(container)
        end = time.perf_counter()
        return {
            "seconds": end - begin,
            "parts": {"create": created - begin, "start": end - created},
        }

    def spawn(self, grace: float | None = None, userns: str | None = None) -> dict[str, Any]:
        """Spawn a server with one port through the driver.

        :param grace: seconds of ``[docker] start_grace``; None for the configured value
        :param userns: the flavor's ``docker:userns``; None for no such extra spec
        """
        if grace is not None:
            CONF.set_override("start_grace", grace, group="docker")
        instance, network_info = self._new_instance({"docker:userns": userns} if userns else {})
        self._stopwatch.take()
        begin = time.perf_counter()
        try:
            self._driver.spawn(
                self._context,
                instance,
                self._image,
                injected_files=[],
                admin_password=None,
                allocations={},
                network_info=network_info,
            )
            end = time.perf_counter()
        finally:
            CONF.clear_override("start_grace", group="docker")
        self._servers.append((instance, network_info))
        return {
            "seconds": end - begin,
            "parts": self._stopwatch.take(),
            "container": naming.container_name(instance.uuid),
            "address": network_info.fixed_ips()[0]["address"],
        }

    def resize(self, flavor: dict[str, Any]) -> dict[str, Any]:
        """Resize the last server through the driver, with the calls of a resize to the same host.

        :param flavor: the attributes that differ from the benchmark's own flavor
        """
        instance, network_info = self._servers[-1]
        new = objects.Flavor(**{**_FLAVOR, **flavor})
        instance.old_flavor = instance.flavor
        self._stopwatch.take()
        begin = time.perf_counter()
        facts = self._driver.migrate_disk_and_power_off(
            self._context, instance, self._driver.get_host_ip_addr(), new, network_info
        )
        instance.flavor = new
        self._driver.finish_migration(
            self._context, None, instance, facts, network_info, self._image, True, {}
        )
        end = time.perf_counter()
        return {"seconds": end - begin, "parts": self._stopwatch.take()}

    def tasks(self) -> dict[str, Any]:
        """Run each of the driver's periodic tasks once."""
        return {"tasks": periodic.measure(self._driver, self._host, self._servers)}

    def restart(self) -> dict[str, Any]:
        """Restart the driver with the existing servers, with the calls of nova-compute's start."""
        self._driver.cleanup_host(self._host)
        begin = time.perf_counter()
        self._driver = DockerDriver(_NoEvents())
        self._driver.init_host(self._host)
        for instance, network_info in self._servers:
            self._driver.get_info(instance)
            self._driver.plug_vifs(instance, network_info)
        return {"seconds": time.perf_counter() - begin, "parts": {}}

    def idle(self, seconds: float) -> dict[str, Any]:
        """Sleep for a while; return the CPU time of the driver's threads."""
        begin = time.process_time()
        time.sleep(seconds)
        return {"seconds": time.process_time() - begin, "parts": {}}

    def remove(self) -> dict[str, Any]:
        """Delete the oldest server."""
        self._driver.destroy(self._context, *self._servers[0])
        del self._servers[0]
        return {"removed": 1}

    def clear(self) -> dict[str, Any]:
        """Delete all containers, in the order of their creation."""
        removed = len(self._bare) + len(self._servers)
        while self._bare:
            self._client.remove_container(self._bare[0], force=True, v=True)
            del self._bare[0]
        while self._servers:
            self._driver.destroy(self._context, *self._servers[0])
            del self._servers[0]
        return {"removed": removed}

    def _new_instance(
        self, extra_specs: Mapping[str, str]
    ) -> tuple[objects.Instance, model.NetworkInfo]:
        number = next(self._numbers)
        instance = objects.Instance(
            self._context,
            id=number,
            uuid=str(uuid.uuid4()),
            project_id="benchmark",
            hostname=f"benchmark-{number}",
            host=self._host,
            config_drive="",
            flavor=objects.Flavor(**{**_FLAVOR, "extra_specs": dict(extra_specs)}),
            image_ref=self._image.id,
            system_metadata={},
            metadata={},
            key_data=None,
            task_state=None,
            migration_context=None,
            numa_topology=None,
        )
        return instance, model.NetworkInfo([_port(number, self._bridge)])


def _port(number: int, bridge: str) -> model.VIF:
    """Return a port, unknown to Neutron, as Nova describes a port of Open vSwitch."""
    port_id = str(uuid.uuid4())
    subnets = [
        model.Subnet(
            cidr=cidr,
            gateway=model.IP(address.format(1), type="gateway"),
            dns=[model.IP(address.format(2), type="dns")],
            ips=[model.FixedIP(address=address.format(_FIRST_HOST + number % _HOSTS))],
            routes=[],
        )
        for cidr, address in _SUBNETS
    ]
    return model.VIF(
        id=port_id,
        address=f"fa:16:3e:be:{number >> 8 & 255:02x}:{number & 255:02x}",
        network=model.Network(
            id=str(uuid.uuid4()), bridge=bridge, label="benchmark", subnets=subnets, mtu=_MTU
        ),
        type=model.VIF_TYPE_OVS,
        details={"datapath_type": "netdev", "ovs_hybrid_plug": False},
        devname=f"tap{port_id}"[: model.NIC_NAME_LEN],
        ovs_interfaceid=port_id,
        vnic_type=model.VNIC_TYPE_NORMAL,
        active=False,
    )
