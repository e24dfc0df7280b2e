# SPDX-License-Identifier: Apache-2.0
"""The handle of a ``spawn_worker`` process on one of the cloud's compute hosts."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks import helper
from devcloud.settings import COMPUTE_USER, Host, Settings


@dataclass(frozen=True)
class Boot:
    """One container's boot: seconds in all, and in each of its parts."""

    seconds: float
    parts: Mapping[str, float]


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

    def clear(self) -> None:
        """Remove what is kept."""
        self._ask({"verb": "clear"})

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._process.send(json.dumps(request))
        answer: dict[str, Any] = json.loads(self._process.read())
        return answer


@contextlib.contextmanager
def started(settings: Settings, host: Host, image: Mapping[str, Any]) -> Iterator[Worker]:
    """Run a worker where and as whom the host's nova-compute runs.

    :param image: Glance's record of the image to boot
    :raises StepFailed: the worker failed; its log says why
    """
    with helper.started(
        settings,
        host,
        "benchmarks.spawn_worker",
        *("--config-file", settings.host_etc(host) / "nova-compute.conf"),
        *("--image", json.dumps(image)),
        user=COMPUTE_USER,
    ) as process:
        yield Worker(process)
