# SPDX-License-Identifier: Apache-2.0
"""Start and stop of a container, each of them verified."""

import contextlib
import time

import psutil
from oslo_log import log as logging

from novadocker import exception
from novadocker.virt.docker.engine import Engine

LOG = logging.getLogger(__name__)

# a killed process that is gone from no CPU after this long hangs in the kernel
_KILL_SECONDS = 30
_EXIT_SECONDS = 10
_LAST_LINES = 5
# so that a fault of Nova's, 255 characters at most, holds them
_LAST_CHARACTERS = 180


def start(engine: Engine, container: str, grace: float) -> None:
    """Start a container and see its first process run for ``grace`` seconds.

    :raises EngineError: the process could not be started
    :raises ProcessEnded: it ended; with its exit code and the last lines it wrote
    """
    engine.start_container(container)
    code = _exit_code(engine, container, grace) if grace else None
    if code is not None:
        raise exception.ProcessEnded(code=code, lines=_last_lines(engine, container) or "nothing")


def _exit_code(engine: Engine, container: str, grace: float) -> int | None:
    """Return the exit code of a process that ends within ``grace`` seconds, None if it lives."""
    code = engine.wait_container(container, grace)
    # the engine hears of an end later than the kernel knows of it, on a busy host much later
    if code is None and not _lives(engine.inspect_container(container).pid):
        code = engine.wait_container(container, _EXIT_SECONDS)
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
    text = engine.read_console(container).decode(errors="replace").strip()
    return " | ".join(line.strip() for line in text.splitlines()[-_LAST_LINES:])[-_LAST_CHARACTERS:]
