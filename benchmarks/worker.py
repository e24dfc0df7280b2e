# SPDX-License-Identifier: Apache-2.0
"""The handle of a ``spawn_worker`` process on one of the cloud's compute hosts."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks import helper
from benchmarks.servers import Servers, open_hosts
from devcloud.clients import connect
from devcloud.settings import COMPUTE_USER, Host, Settings
from devcloud.steps import step

# the availability zone of the hosts that have the driver
OWN_ZONE = "nova"


@dataclass(frozen=True)
class Boot:
    """What was done to one container: seconds in all, and in each of its parts.

    :ivar container: its name, if the driver made it
    :ivar address: its IPv4 address
    """

    seconds: float
    parts: Mapping[str, float]
    container: str = ""
    address: str = ""


@dataclass(frozen=True)
class Task:
    """What one turn of a periodic task took: requests to the engine, and seconds of CPU time."""

    calls: int
    cpu: float


class Worker:
    """Asks the process; every answer is waited for."""

    def __init__(self, process: helper.Helper) -> None:
        self._process = process

    def raw(self) -> Boot:
        """Boot a bare container and keep it."""
        return Boot(**self._ask({"verb": "raw"}))

    def spawn(self, grace: float | None = None) -> Boot:
        """Let the driver spawn a server and keep it.

        :param grace: ``[docker] start_grace``, None for the default
        """
        return Boot(**self._ask({"verb": "spawn", "grace": grace}))

    def resize(self, flavor: Mapping[str, Any]) -> Boot:
        """Let the driver give the last server another flavor.

        :param flavor: what differs from the flavor it was spawned with
        """
        return Boot(**self._ask({"verb": "resize", "flavor": flavor}))

    def tasks(self) -> dict[str, Task]:
        """Let the driver do once what Nova asks of it periodically; by the task's name."""
        return {name: Task(**told) for name, told in self._ask({"verb": "tasks"})["tasks"].items()}

    def restart(self) -> Boot:
        """Start the driver anew with all servers that are kept."""
        return Boot(**self._ask({"verb": "restart"}))

    def idle(self, seconds: float) -> Boot:
        """Let the driver do nothing for a while; the seconds are the CPU time that it took."""
        return Boot(**self._ask({"verb": "idle", "seconds": seconds}))

    def remove(self) -> None:
        """Remove the oldest server that is kept."""
        self._ask({"verb": "remove"})

    def clear(self) -> None:
        """Remove what is kept."""
        self._ask({"verb": "clear"})

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._process.send(json.dumps(request))
        answer: dict[str, Any] = json.loads(self._process.read())
        return answer


def image_on(settings: Settings, host: Host, name: str) -> dict[str, Any]:
    """Bring an image to a host; return Glance's record of it, without properties.

    A worker has nobody's token to fetch it with: nova-compute brings it, for a server.

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
    """Run a worker where and as whom the host's nova-compute runs.

    :param image: Glance's record of the image to boot
    :param bridge: of Open vSwitch, for the servers' ports
    :raises StepFailed: the worker failed; its log says why
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
