# SPDX-License-Identifier: Apache-2.0
"""The handle of a ``spawn_worker`` process on the cloud's first compute host."""

import contextlib
import json
import select
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcloud.network import inside
from devcloud.settings import CHECKOUT, COMPUTE_USER, Host, Settings, load_settings
from devcloud.steps import StepFailed

_ANSWER_SECONDS = 60
# it removes what it made
_END_SECONDS = 60


@dataclass(frozen=True)
class Boot:
    """One container's boot: seconds in all, and in each of its parts."""

    seconds: float
    parts: Mapping[str, float]


class Worker:
    """Asks the process; every answer is waited for."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
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
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request).encode() + b"\n")
        ready, _, _ = select.select([process.stdout], [], [], _ANSWER_SECONDS)
        line = process.stdout.readline() if ready else b""
        if not line:
            raise _failure(f"no answer to {request}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def started(settings: Settings, host: Host, image: Mapping[str, Any]) -> Iterator[Worker]:
    """Run a worker where and as whom the host's nova-compute runs.

    :param image: Glance's record of the image to boot
    :raises StepFailed: the worker failed; its log says why
    """
    path = f"{settings.bin}:/usr/sbin:/usr/bin:/sbin:/bin"
    command: list[str | Path] = [
        *("runuser", "-u", COMPUTE_USER, "--"),
        settings.bin / "python3",
        *("-m", "benchmarks.spawn_worker"),
        "--config-file",
        settings.host_etc(host) / "nova-compute.conf",
        *("--image", json.dumps(image)),
    ]
    with (settings.log / "benchmark-worker.log").open("wb") as log:
        process = subprocess.Popen(
            inside(host.namespace, command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,
            cwd=CHECKOUT,
            env={"PATH": path, "LANG": "C.UTF-8", "HOME": str(settings.host_data(host) / "nova")},
            # an interrupt is ours to handle: the worker ends with its input
            start_new_session=True,
        )
    assert process.stdin is not None
    try:
        yield Worker(process)
    finally:
        process.stdin.close()
        try:
            code = process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise _failure("it does not end") from error
    if code != 0:
        raise _failure(f"it exited with {code}")


def _failure(text: str) -> StepFailed:
    log = load_settings().log / "benchmark-worker.log"
    return StepFailed(f"the benchmark's worker: {text}", f"less {log}", log)
