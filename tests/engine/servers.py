# SPDX-License-Identifier: Apache-2.0
"""The driver on a real engine and Open vSwitch, called by the tests in place of Nova.

``Server`` holds the fields that Nova's database has of a server. It can be passed to another
process; each call creates the objects for the driver from it.
"""

import contextlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

from nova import conf, objects
from nova import context as nova_context
from nova.compute import power_state, provider_tree, vm_states
from nova.exception import InstanceNotFound
from nova.network import model

from novadocker import exception, naming
from novadocker.virt.docker.driver import DockerDriver
from novadocker.virt.docker.migration import nova_records
from novadocker.virt.docker.network import device_tags, neutron
from novadocker.virt.docker.operations.collaborators import real_collaborators
from novadocker.virt.docker.volumes.root import VolumeImage
from tests.engine import networks
from tests.fake_glance import FakeGlance

HOST = "novadocker-test"
IMAGE_ID = "5eed0000-0000-4000-8000-000000000001"
_CHECKSUM = "0" * 32
IMAGE = {
    "id": IMAGE_ID,
    "container_format": "docker",
    "disk_format": "raw",
    "checksum": _CHECKSUM,
    "properties": {},
}
IMAGE_NAME = f"novadocker/{IMAGE_ID}:{_CHECKSUM[:12]}"
# The command ends on SIGTERM, as an init does; the directory /data is a volume.
IMAGE_CHANGES = ['CMD ["sh", "-c", "trap \'exit 0\' TERM; sleep 1d & wait"]', "VOLUME /data"]

_PLAIN = {"vcpus": 1, "memory_mb": 64, "root_gb": 0, "ephemeral_gb": 0, "swap": 0}
FLAVORS: Mapping[str, Mapping[str, Any]] = {
    "small": {**_PLAIN, "extra_specs": {}},
    "large": {**_PLAIN, "vcpus": 2, "memory_mb": 128, "extra_specs": {"docker:pids_limit": "512"}},
    "tuned": {
        **_PLAIN,
        "extra_specs": {
            "docker:capabilities": "NET_ADMIN",
            "docker:sysctl:kernel.msgmax": "16384",
            "docker:sysctl:kernel.sem": "250 32000 32 100",
            "docker:sysctl:fs.mqueue.queues_max": "99",
            "docker:sysctl:net.core.somaxconn": "777",
            "docker:sysctl:net.ipv4.ip_local_port_range": "20000 30000",
            "docker:sysctl:net.ipv4.tcp_keepalive_time": "123",
            "docker:sysctl:net.ipv4.tcp_rmem": "4096 65536 1048576",
        },
    },
    "nesting": {
        **_PLAIN,
        "extra_specs": {"docker:nesting": "true", "docker:userns": "own"},
    },
    "disk": {**_PLAIN, "extra_specs": {"docker:suspend": "disk", "docker:userns": "host"}},
    "own": {**_PLAIN, "extra_specs": {"docker:userns": "own"}},
    "host": {**_PLAIN, "extra_specs": {"docker:userns": "host"}},
    "capped": {
        **_PLAIN,
        "extra_specs": {
            "quota:cpu_period": "100000",
            "quota:cpu_quota": "50000",
            "quota:vif_inbound_average": "12800",
            "quota:vif_outbound_average": "6400",
        },
    },
}


@dataclass(frozen=True)
class Server:
    """The fields of a server in Nova's database.

    :ivar volumes: the host's device of each volume; the first is at /dev/vdb
    :ivar root: the host's device of the volume that it boots from; empty without one
    :ivar ports: the numbers of its ports, each with its own address
    :ivar power_state: the last known power state
    :ivar metadata: the system metadata
    """

    uuid: str
    flavor: str = "small"
    ports: tuple[int, ...] = ()
    old_flavor: str | None = None
    vm_state: str = vm_states.ACTIVE
    task_state: str | None = None
    power_state: int = power_state.NOSTATE
    metadata: Mapping[str, str] = field(default_factory=dict)
    volumes: tuple[str, ...] = ()
    root: str = ""

    @property
    def block_devices(self) -> dict[str, Any]:
        """The volumes as Nova describes them, of Cinder's type ``local``."""
        devices = zip((self.root, *self.volumes), "abcdefghij", strict=False)
        return {
            "block_device_mapping": [
                {
                    "connection_info": self.connection(device),
                    "mount_device": f"/dev/vd{letter}",
                    "boot_index": 0 if letter == "a" else None,
                }
                for device, letter in devices
                if device
            ]
        }

    @staticmethod
    def connection(device: str, **data: object) -> dict[str, Any]:
        """Return Cinder's connection to a volume that is a device of the host."""
        return {
            "driver_volume_type": "local",
            "data": {"device_path": device, **data},
            "serial": str(uuid.uuid5(uuid.NAMESPACE_URL, device)),
        }

    @property
    def name(self) -> str:
        """The name of its container."""
        return naming.container_name(self.uuid)

    @property
    def network_info(self) -> model.NetworkInfo:
        return model.NetworkInfo([self.port(number) for number in self.ports])

    def port(self, number: int) -> model.VIF:
        """Return a port as Nova describes it; the same number always returns the same port."""
        port_id = str(uuid.uuid5(uuid.UUID(self.uuid), str(number)))
        return networks.vif(
            networks.subnet("10.7.0.0/16", [f"10.7.{number >> 8}.{number & 255}"], "10.7.255.254"),
            id=port_id,
            address=f"fa:16:3e:00:{number >> 8:02x}:{number & 255:02x}",
            devname=f"tap{port_id}"[: model.NIC_NAME_LEN],
            ovs_interfaceid=port_id,
            active=True,
        )

    def instance(self) -> objects.Instance:
        made = objects.Instance(
            nova_context.get_admin_context(),
            id=1,
            uuid=self.uuid,
            project_id="project",
            hostname="web-1",
            host=HOST,
            config_drive="",
            flavor=_flavor(self.flavor),
            old_flavor=self.old_flavor and _flavor(self.old_flavor),
            image_ref="" if self.root else IMAGE_ID,
            system_metadata=dict(self.metadata),
            metadata={},
            key_data=None,
            vm_state=self.vm_state,
            task_state=self.task_state,
            power_state=self.power_state,
            migration_context=None,
            numa_topology=None,
            trusted_certs=None,
        )
        made.info_cache = objects.InstanceInfoCache(network_info=self.network_info)
        return made


def _flavor(name: str) -> objects.Flavor:
    return objects.Flavor(name=name, **FLAVORS[name])


class _VirtAPI:
    """A replacement for Nova's ``virtapi`` that does not wait for Neutron's events."""

    @contextlib.contextmanager
    def wait_for_instance_event(self, *_arguments: Any) -> Iterator[None]:
        yield


class _ServiceStatus:
    """A replacement for the service's status, because the tests have no database of Nova."""

    def start(self, host: str) -> None:
        pass

    def stop(self) -> None:
        pass

    def report(self, problem: str | None) -> None:
        pass


class Nova:
    """Calls its own driver in the order of Nova's compute manager."""

    def __init__(self, glance: FakeGlance) -> None:
        self.glance = glance
        self.context = nova_context.get_admin_context()
        self.image = objects.ImageMeta.from_dict(IMAGE)
        # As Cinder has it of a volume.
        self.volume_image: objects.ImageMeta | None = self.image
        real = real_collaborators()
        self.driver = DockerDriver(
            _VirtAPI(),
            replace(
                real,
                create_service_status=lambda _: _ServiceStatus(),
                read_volume_image=lambda *_: (
                    VolumeImage(self.volume_image, readable=True) if self.volume_image else None
                ),
                read_block_devices=lambda _, instance: self._block_devices.get(instance.uuid, {}),
            ),
        )
        self._block_devices: dict[str, dict[str, Any]] = {}

    def start(self, servers: Sequence[Server]) -> None:
        """Start nova-compute with these servers in Nova's database."""
        self._block_devices = {server.uuid: server.block_devices for server in servers}
        self.driver.init_host(HOST)
        instances = [server.instance() for server in servers]
        self.driver.process_instances_at_startup(self.context, instances)
        for server, instance in zip(servers, instances, strict=True):
            self.driver.plug_vifs(instance, server.network_info)
            lost = power_state.RUNNING == server.power_state != self._known_state(server)
            if lost and conf.CONF.resume_guests_state_on_host_boot:
                self.driver.resume_state_on_host_boot(
                    self.context, instance, server.network_info, None, server.block_devices
                )

    def stop(self) -> None:
        self.driver.cleanup_host(HOST)

    def spawn(self, server: Server) -> Server:
        instance = server.instance()
        self.driver.spawn(
            *(self.context, instance, self.image, [], None, {}),
            network_info=server.network_info,
            block_device_info=server.block_devices,
        )
        return _kept(server, instance)

    def destroy(self, server: Server) -> None:
        self.driver.destroy(
            self.context, server.instance(), server.network_info, server.block_devices
        )

    def power_off(self, server: Server) -> None:
        self.driver.power_off(server.instance(), timeout=10, retry_interval=5)

    def power_on(self, server: Server) -> None:
        self.driver.power_on(
            self.context, server.instance(), server.network_info, server.block_devices
        )

    def reboot(self, server: Server, kind: str = "HARD") -> None:
        self.driver.reboot(
            self.context, server.instance(), server.network_info, kind, server.block_devices
        )

    def attach_volume(self, server: Server, device: str, **data: object) -> Server:
        """Attach a volume at the next name."""
        after = replace(server, volumes=(*server.volumes, device))
        path = after.block_devices["block_device_mapping"][-1]["mount_device"]
        instance = server.instance()
        services = self.driver._services
        with (
            self._database(instance),
            mock.patch.object(services, "device_metadata", return_value=None),
        ):
            self.driver.attach_volume(
                self.context, server.connection(device, **data), instance, path
            )
        return after

    def detach_volume(self, server: Server) -> Server:
        """Detach the last volume."""
        found = server.block_devices["block_device_mapping"][-1]
        self.driver.detach_volume(
            self.context, found["connection_info"], server.instance(), found["mount_device"]
        )
        return replace(server, volumes=server.volumes[:-1])

    def attach(self, server: Server, number: int) -> Server:
        """Attach a port, which Nova's database contains from the beginning of the operation."""
        after = replace(server, ports=(*server.ports, number))
        instance = after.instance()
        with self._database(instance):
            self.driver.attach_interface(self.context, instance, self.image, server.port(number))
        return _kept(after, instance)

    def detach(self, server: Server, number: int) -> Server:
        """Detach a port, which Nova's database contains until the end of the operation."""
        instance = server.instance()
        with self._database(instance):
            self.driver.detach_interface(self.context, instance, server.port(number))
        after = replace(server, ports=tuple(port for port in server.ports if port != number))
        return _kept(after, instance)

    def resize(self, server: Server, flavor: str) -> Server:
        """Resize a server in place, up to the state VERIFY_RESIZE."""
        facts = self.driver.migrate_disk_and_power_off(
            self.context,
            server.instance(),
            self.driver.get_host_ip_addr(),
            _flavor(flavor),
            server.network_info,
            server.block_devices,
        )
        after = replace(server, flavor=flavor, old_flavor=server.flavor)
        self.driver.finish_migration(
            self.context,
            None,
            after.instance(),
            facts,
            server.network_info,
            self.image,
            True,
            {},
            server.block_devices,
        )
        return after

    def confirm_resize(self, server: Server) -> Server:
        self.driver.confirm_migration(
            self.context, self._migration(), server.instance(), server.network_info
        )
        return replace(server, old_flavor=None)

    def revert_resize(self, server: Server, power_on: bool = True) -> Server:
        """Restore the old flavor, also from an incomplete resize.

        :param power_on: whether the server was not stopped before the resize, as Nova tells it
        """
        back = replace(server, flavor=server.old_flavor or server.flavor, old_flavor=None)
        self.driver.finish_revert_migration(
            *(self.context, back.instance(), server.network_info, self._migration()),
            server.block_devices,
            power_on=power_on,
        )
        return back

    def snapshot(self, server: Server, image_id: str) -> None:
        self.glance.records[image_id] = {"id": image_id, "properties": {}}
        self.driver.snapshot(self.context, server.instance(), image_id, lambda **_: None)

    def rescue(self, server: Server) -> Server:
        self.driver.rescue(
            self.context,
            server.instance(),
            server.network_info,
            self.image,
            "secret",
            server.block_devices,
            None,
        )
        return replace(server, vm_state=vm_states.RESCUED)

    def unrescue(self, server: Server) -> Server:
        self.driver.unrescue(self.context, server.instance())
        return replace(server, vm_state=vm_states.ACTIVE)

    def periodic(self) -> None:
        """Run nova-compute's periodic tasks of one minute."""
        self.driver.get_available_resource(HOST)
        tree = provider_tree.ProviderTree()
        tree.new_root(HOST, str(uuid.uuid4()))
        self.driver.update_provider_tree(tree, HOST)

    def suspend(self, server: Server) -> None:
        self.driver.suspend(self.context, server.instance())

    def resume(self, server: Server) -> None:
        self.driver.resume(
            self.context, server.instance(), server.network_info, server.block_devices
        )

    def state(self, server: Server) -> int:
        return int(self.driver.get_info(server.instance(), use_cache=False).state)

    @contextlib.contextmanager
    def _database(self, instance: objects.Instance) -> Iterator[None]:
        """Make the driver read this instance in place of Nova's database."""
        instance.save = lambda: None
        services = self.driver._services
        with mock.patch.object(services, "read_instance", return_value=instance):
            yield

    def _known_state(self, server: Server) -> int:
        try:
            return self.state(server)
        except InstanceNotFound:
            return int(power_state.NOSTATE)

    @staticmethod
    def _migration() -> objects.Migration:
        return objects.Migration(
            source_compute=HOST, dest_compute=HOST, source_node=HOST, dest_node=HOST
        )


def _kept(server: Server, instance: objects.Instance) -> Server:
    return replace(server, metadata=dict(instance.system_metadata))


@contextlib.contextmanager
def configured(url: str, instances: Path, api_timeout: int = 60) -> Iterator[None]:
    """Set the options of nova-compute that ``Nova`` requires.

    :param instances: the instances directory
    """
    options: list[tuple[str, object, str | None]] = [
        ("api_url", url, "docker"),
        ("api_timeout", api_timeout, "docker"),
        # All commands of these images keep running, so no grace is needed.
        ("start_grace", 0.0, "docker"),
        ("lxcfs_folder", "", "docker"),
        ("volume_modes", ["raw", "mount"], "docker"),
        ("instances_path", str(instances), None),
        ("state_path", str(instances), None),
        ("my_ip", "192.0.2.1", None),
        ("host", HOST, None),
    ]
    for name, value, group in options:
        conf.CONF.set_override(name, value, group=group)
    try:
        # Without Nova's database, no port has a tag, and no operation was interrupted.
        no_neutron = exception.NeutronUnavailable(reason="there is none")
        with (
            mock.patch.object(device_tags, "device_metadata", return_value=None),
            mock.patch.object(nova_records, "resume_cut_off"),
            mock.patch.object(nova_records, "cut_off", return_value=[]),
            mock.patch.object(nova_records, "cut_off_events", return_value=[]),
            mock.patch.object(nova_records, "deleted", return_value=[]),
            mock.patch.object(nova_records, "gone", return_value=frozenset()),
            mock.patch.object(nova_records, "cut_off_events", return_value=()),
            mock.patch.object(neutron, "bound_ports", side_effect=no_neutron),
            mock.patch.object(neutron, "active_ports", return_value=frozenset()),
        ):
            yield
    finally:
        for name, _, group in options:
            conf.CONF.clear_override(name, group=group)
