# SPDX-License-Identifier: Apache-2.0
"""Start and stop of a container, each of them verified."""

import contextlib
import re
import time
from collections.abc import Iterator

import psutil
from oslo_log import log as logging

from novadocker import exception
from novadocker.privsep.guest import containerd
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.model import ContainerDetail

LOG = logging.getLogger(__name__)

# a killed process that is gone from no CPU after this long hangs in the kernel
_KILL_SECONDS = 30
_EXIT_SECONDS = 10
_MENDING_SECONDS = 10
_TASK_LEFT = re.compile(r"task ([0-9a-f]{64}): already exists")
_ENDED_LATE = re.compile(r"cannot start a (stopped process|container that has stopped)")
_LAST_LINES = 5
_LAST_BYTES = 4096
# so that a fault of Nova's, 255 characters at most, holds them
_LAST_CHARACTERS = 180


@contextlib.contextmanager
def started(engine: Engine, container: str, grace: float) -> Iterator[ContainerDetail]:
    """Start a container, run the body, and see the first process run for ``grace`` seconds.

    The body's time is part of the grace, and its failure is not reported of a process that ended.

    :raises EngineError: the process could not be started
    :raises ProcessEnded: it ended; with its exit code and the last lines it wrote
    """
    _start(engine, container)
    deadline = time.monotonic() + grace
    found = engine.inspect_container(container)
    try:
        yield found
    finally:
        code = _exit_code(engine, found, deadline) if grace else None
        if code is not None:
            raise exception.ProcessEnded(
                code=code, lines=_last_lines(engine, container) or "nothing"
            )


def _start(engine: Engine, container: str) -> None:
    """Start a container, also after the engine was killed while its last processes ended.

    Docker Engine 20.10 can take their end, of which it hears late, for one of the new process, and
    then only has to be asked again; or it finds their task, which it has lost sight of, in the way.
    """
    deadline = time.monotonic() + _MENDING_SECONDS
    while True:
        try:
            engine.start_container(container)
        except exception.EngineError as error:
            left = _TASK_LEFT.search(str(error))
            if time.monotonic() > deadline or not (left or _ENDED_LATE.search(str(error))):
                raise
            LOG.warning("Container %s is started once more: %s", container, error)
            if left:
                containerd.end_shim(left[1])
        else:
            return


def _exit_code(engine: Engine, found: ContainerDetail, deadline: float) -> int | None:
    """Return the exit code of a process that ends before the deadline, None if it lives."""
    left = deadline - time.monotonic()
    code = engine.wait_container(found.id, left) if left > 0 else None
    # the engine hears of an end later than the kernel knows of it, on a busy host much later
    if code is None and not _lives(found.pid):
        code = engine.wait_container(found.id, _EXIT_SECONDS)
    return code


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def stop(engine: Engine, container: str, timeout: float, retry_interval: float) -> None:
    """Ask a container's first process to end, again and again; kill it after ``timeout`` seconds.

    A frozen container is thawed first, since frozen processes hear nothing. One that does not
    run is left alone.

    :param retry_interval: seconds from one request to the next; 0 asks once
    :raises EngineError: it runs even after it was killed
    """
    found = engine.inspect_container(container)
    if found.status == "paused":
        engine.unpause_container(found.id)
    elif found.status not in ("running", "restarting"):
        return
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        if _ended(engine, found.id, found.stop_signal, min(retry_interval or left, left)):
            return
    LOG.info("Container %s did not stop within %s s: killing it", found.name, timeout)
    if not _ended(engine, found.id, "SIGKILL", _KILL_SECONDS):
        raise exception.EngineError(
            operation="to stop the server", reason="its processes survived SIGKILL"
        )


def _ended(engine: Engine, container: str, signal: str, seconds: float) -> bool:
    # the engine refuses a signal to a process that has just ended: the wait tells
    with contextlib.suppress(exception.EngineError):
        engine.signal_container(container, signal)
    return engine.wait_container(container, seconds) is not None


def _last_lines(engine: Engine, container: str) -> str:
    text = engine.read_console(container, _LAST_BYTES).decode(errors="replace").strip()
    return " | ".join(line.strip() for line in text.splitlines()[-_LAST_LINES:])[-_LAST_CHARACTERS:]
