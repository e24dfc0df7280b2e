# SPDX-License-Identifier: Apache-2.0
"""The handle of a ``spawn_worker`` process on one of the cloud's compute hosts."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks import helper
from benchmarks.servers import Servers
from devcloud.clients import connect
from devcloud.services import open_hosts
from devcloud.settings import COMPUTE_USER, Host, Settings
from devcloud.steps import step

# The availability zone of the hosts with this driver.
OWN_ZONE = "nova"


@dataclass(frozen=True)
class Boot:
    """An operation on one container: its seconds, and the seconds of its parts.

    :ivar container: its name, if the driver created it
    :ivar address: its IPv4 address
    """

    seconds: float
    parts: Mapping[str, float]
    container: str = ""
    address: str = ""


@dataclass(frozen=True)
class Task:
    """The cost of one turn of a periodic task: requests to the engine, and CPU seconds."""

    calls: int
    cpu: float


class Worker:
    """Sends requests to the process and waits for each answer."""

    def __init__(self, process: helper.Helper) -> None:
        self._process = process

    def raw(self) -> Boot:
        """Boot a bare container and keep it."""
        return Boot(**self._ask({"verb": "raw"}))

    def spawn(self, grace: float | None = None, userns: str | None = None) -> Boot:
        """Spawn a server through the driver and keep it.

        :param grace: ``[docker] start_grace``; None for the default
        :param userns: the flavor's ``docker:userns``; None for no such extra spec
        """
        return Boot(**self._ask({"verb": "spawn", "grace": grace, "userns": userns}))

    def resize(self, flavor: Mapping[str, Any]) -> Boot:
        """Resize the last server through the driver.

        :param flavor: the attributes that differ from the flavor of its spawn
        """
        return Boot(**self._ask({"verb": "resize", "flavor": flavor}))

    def tasks(self) -> dict[str, Task]:
        """Run each of the driver's periodic tasks once; return their costs by name."""
        return {name: Task(**told) for name, told in self._ask({"verb": "tasks"})["tasks"].items()}

    def restart(self) -> Boot:
        """Restart the driver with all kept servers."""
        return Boot(**self._ask({"verb": "restart"}))

    def idle(self, seconds: float) -> Boot:
        """Leave the driver idle for a while; the result's seconds are its CPU time."""
        return Boot(**self._ask({"verb": "idle", "seconds": seconds}))

    def remove(self) -> None:
        """Delete the oldest kept server."""
        self._ask({"verb": "remove"})

    def clear(self) -> None:
        """Delete all kept servers and containers."""
        self._ask({"verb": "clear"})

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._process.send(json.dumps(request))
        answer: dict[str, Any] = json.loads(self._process.read())
        return answer


def image_on(settings: Settings, host: Host, name: str) -> dict[str, Any]:
    """Load an image on a host; return Glance's record of it, without properties.

    A worker has no user's token to fetch the image with, so nova-compute fetches it, for a server.

    :raises StepFailed: the server is not ACTIVE in time
    """
    with (
        step(f"image {name} on {host.name}"),
        connect(settings, "admin") as admin,
        connect(settings, "demo") as demo,
        open_hosts(admin, settings, [host]),
    ):
        image = admin.image.find_image(name, ignore_missing=False)
        log = settings.log / f"nova-compute-{host.name}.log"
        Servers(demo, image.id, [log]).boot(OWN_ZONE)
    wanted = ("id", "name", "checksum", "container_format", "disk_format", "size", "status")
    return {key: image[key] for key in wanted} | {"properties": {}}


@contextlib.contextmanager
def started(
    settings: Settings, host: Host, image: Mapping[str, Any], bridge: str = "br-int"
) -> Iterator[Worker]:
    """Run a worker where the host's nova-compute runs, and as its user.

    :param image: Glance's record of the image to boot
    :param bridge: the Open vSwitch bridge for the servers' ports
    :raises StepFailed: the worker failed; its log contains the cause
    """
    with helper.started(
        settings,
        host,
        "benchmarks.spawn_worker",
        *("--config-file", settings.host_etc(host) / "nova-compute.conf"),
        *("--image", json.dumps(image)),
        *("--bridge", bridge),
        user=COMPUTE_USER,
    ) as process:
        yield Worker(process)
