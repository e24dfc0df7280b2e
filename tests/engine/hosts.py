# SPDX-License-Identifier: Apache-2.0
"""A compute host of the tests: an engine, a switch, and replacements for Nova and Glance."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import docker

from novadocker.linux import namespaces
from novadocker.privsep.network import namespace
from tests.engine import daemons, servers
from tests.engine.busybox import busybox_archive
from tests.engine.engines import OwnEngine, remove_containers
from tests.engine.servers import Nova, Server
from tests.engine.survey import Survey
from tests.engine.switch import Switch
from tests.fake_glance import FakeGlance


@dataclass(frozen=True)
class ComputeHost:
    """A host whose engine has the image of all servers.

    :ivar instances: nova-compute's instances directory
    :ivar survey: checks this host
    :ivar new_uuid: returns the UUID of a new server
    """

    engine: OwnEngine
    client: docker.APIClient
    switch: Switch
    glance: FakeGlance
    instances: Path
    survey: Survey
    new_uuid: Callable[[], str]

    def start_nova(self, known: Sequence[Server] = ()) -> Nova:
        """Start a nova-compute.

        :param known: the host's servers in Nova's database
        """
        nova = Nova(self.glance)
        nova.start(known)
        return nova

    def new_server(self, flavor: str = "small", ports: tuple[int, ...] = ()) -> Server:
        """Return the description of a server that does not exist yet."""
        return Server(self.new_uuid(), flavor, ports)

    def lose_power(self, state_folder: Path) -> None:
        """Delete all but the files on disk: the engine's data and the switch's database."""
        self.switch.stop_switching()
        self.engine.lose_power()
        for name in daemons.namespaces_of(state_folder):
            namespaces.unmount_namespace(f"{namespace.NAMESPACES}/{name}")
        for record in daemons.records_of(state_folder):
            record.unlink()

    def return_power(self) -> None:
        """Start the engine and the switch again."""
        self.engine.start_all()
        self.switch.start_switching()


HostOf = Callable[..., AbstractContextManager[ComputeHost]]
"""The type of the fixture ``host_of``."""


@contextmanager
def compute_host(
    engine: OwnEngine,
    switch: Switch,
    glance: FakeGlance,
    state: Path,
    instances: Path,
    new_uuid: Callable[[], str],
    api_timeout: int = 60,
) -> Iterator[ComputeHost]:
    """Yield a compute host of an engine; delete its containers and its image at the end.

    :param state: the session's state directory
    :param api_timeout: the driver's timeout of the engine's answers, in seconds
    """
    instances.mkdir()
    with closing(docker.APIClient(base_url=engine.url, timeout=60)) as client:
        _import_image(client)
        survey = Survey(client, switch, state, instances)
        try:
            with servers.configured(engine.url, instances, api_timeout):
                yield ComputeHost(engine, client, switch, glance, instances, survey, new_uuid)
        finally:
            remove_containers(engine.url)
            client.remove_image(servers.IMAGE_NAME, force=True)


def _import_image(client: docker.APIClient) -> None:
    """Import the image of all servers into the engine, with the name of an image from Glance."""
    repository, tag = servers.IMAGE_NAME.rsplit(":", 1)
    client.import_image_from_data(
        busybox_archive(), repository=repository, tag=tag, changes=servers.IMAGE_CHANGES
    )
