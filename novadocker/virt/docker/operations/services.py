# SPDX-License-Identifier: Apache-2.0
"""This host as all operations on its instances need it: the engine, and what is kept beside it."""

from __future__ import annotations

from pathlib import Path

from nova import exception as nova_exception
from nova import objects
from oslo_log import log as logging

from novadocker import exception, naming
from novadocker.conf import CONF
from novadocker.privsep.guest import runtime
from novadocker.virt.docker.containers.cleanup import AbandonedContainers
from novadocker.virt.docker.containers.rescue import RescueEnds
from novadocker.virt.docker.containers.servers import ServerList
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.engine.connection import Tls
from novadocker.virt.docker.guest import console
from novadocker.virt.docker.guest.load_average import Loads
from novadocker.virt.docker.guest.lxcfs import Lxcfs
from novadocker.virt.docker.host import filesystem, id_maps, topology
from novadocker.virt.docker.host import resources as host_facts
from novadocker.virt.docker.images.store import ImageStore
from novadocker.virt.docker.limits import flavor as flavor_limits
from novadocker.virt.docker.limits.enforcement import Enforcement
from novadocker.virt.docker.migration.backup import Copies
from novadocker.virt.docker.migration.incoming import Arrivals
from novadocker.virt.docker.model import ContainerDetail, EngineInfo

LOG = logging.getLogger(__name__)


class Node:
    """One compute node; what ``open`` finds out does not change while nova-compute runs.

    :ivar name: the node's and the host's name
    :ivar sized_disks: whether the size of a server's disk can be limited
    :ivar id_maps: the users and groups of servers on the host, None without ``userns-remap``
    """

    def __init__(self) -> None:
        """Take the options; nothing is asked of the engine yet."""
        state = Path(CONF.state_path)
        self.name = str(CONF.host)
        self.engine = Engine(
            CONF.docker.api_url,
            CONF.docker.api_timeout,
            CONF.docker.image_load_timeout,
            Tls(CONF.docker.ca_file, CONF.docker.cert_file, CONF.docker.key_file),
        )
        self.listing = ServerList(self.engine)
        self.abandoned = AbandonedContainers(self.engine)
        self.rescue_ends = RescueEnds(self.engine, runtime.release_container)
        self.loads = Loads(state, self.engine, self.listing)
        self.arrivals = Arrivals(state / "arrivals")
        self.copies = Copies(self.engine, self.listing, state / "copies")
        self.lxcfs = Lxcfs(CONF.docker.lxcfs_folder, self.engine, self.listing, self.loads)

    def open(self, host: str) -> None:
        """Claim the engine and check that this host can run servers.

        :raises EngineUnavailable: the engine does not answer
        :raises InvalidConfiguration: the runtime shim is not registered, or another nova-compute
            uses the engine
        """
        self.name = host
        info = self.engine.info()
        self.engine.claim(info)
        _check_runtime(info)
        if not info.live_restore:
            LOG.warning(
                "live-restore is off: all servers stop when the engine does; set it in daemon.json"
            )
        self.id_maps = id_maps.read_id_maps(info)
        self.cells = topology.read_cells()
        self.cpu_sets = topology.cpu_sets(self.cells)
        self.sized_disks = filesystem.can_size_disks(info)
        if not self.sized_disks:
            LOG.warning("A server can fill the disk of this host: its size can't be limited")
        self.enforcement = Enforcement(self.engine, info, Path(CONF.state_path))
        self.data_root = info.data_root
        self.images = ImageStore(self.engine, host_facts.architecture(info))
        self.consoles = console.Consoles(
            self.engine,
            CONF.serial_console.proxyclient_address,
            console.parse_proxies(CONF.docker.serial_console_proxies),
            CONF.consoleauth.token_ttl,
        )

    def start(self) -> None:
        """Start what runs beside the operations."""
        self.lxcfs.start()
        self.loads.start()
        self.copies.start()

    def close(self) -> None:
        """Stop that, and let another nova-compute have the engine."""
        self.consoles.stop()
        self.lxcfs.stop()
        self.loads.stop()
        self.copies.stop()
        self.engine.release()

    def find(self, instance: objects.Instance) -> ContainerDetail:
        """Return the instance's container; InstanceNotFound if there is none of ours."""
        try:
            found = self.engine.inspect_container(naming.container_name(instance.uuid))
        except exception.ContainerNotFound as error:
            raise nova_exception.InstanceNotFound(instance_id=instance.uuid) from error
        if not naming.owned(found.name, found.labels):
            raise nova_exception.InstanceNotFound(instance_id=instance.uuid)
        return found

    def rules(self) -> flavor_limits.Rules:
        """Return what flavors and images may ask of this host."""
        return flavor_limits.rules(
            self.cells,
            self.cpu_sets,
            pids=CONF.docker.default_pids_limit,
            sized_disks=self.sized_disks,
            image_may_ask=CONF.docker.image_extra_specs,
        )


def _check_runtime(info: EngineInfo) -> None:
    if CONF.docker.runtime not in info.runtimes:
        raise exception.InvalidConfiguration(
            reason=f"the engine has no runtime {CONF.docker.runtime!r}; register the shim "
            "under 'runtimes' in daemon.json and reload the engine"
        )
