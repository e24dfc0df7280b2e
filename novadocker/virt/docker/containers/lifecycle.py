# SPDX-License-Identifier: Apache-2.0
"""The start and the stop of a container, with a check that each has happened."""

import contextlib
import re
import signal
import threading
import time
from collections.abc import Iterator

import psutil
from oslo_log import log as logging

from novadocker import exception, naming
from novadocker.linux import signals
from novadocker.privsep.guest import containerd
from novadocker.virt.docker.containers.protocols import ContainerEngine
from novadocker.virt.docker.model import ContainerDetail

LOG = logging.getLogger(__name__)

SYSTEMD_POWER_OFF = "SIGRTMIN+3"
"""The signal at which systemd stops as after ``systemctl halt`` (systemd(1))."""

# A killed process that still exists after this time hangs in the kernel.
_KILL_SECONDS = 30
_EXIT_SECONDS = 10
_MENDING_SECONDS = 10
_TRY_AGAIN_SECONDS = 0.5
_TASK_LEFT = re.compile(rf"task ({naming.CONTAINER_ID.pattern}): already exists")
_TERMINAL_CLOSED = re.compile(
    rf"novadocker: the engine has closed the terminal of container ({naming.CONTAINER_ID.pattern})"
)
_LAST_LINES = 5
_LAST_BYTES = 4096
# Because Nova cuts the text of a fault to 255 characters, the lines are cut here.
_LAST_CHARACTERS = 180


@contextlib.contextmanager
def started(engine: ContainerEngine, container: str, grace: float) -> Iterator[ContainerDetail]:
    """Start a container, run the block, and check that the first process runs ``grace`` seconds.

    The time of the block counts as part of ``grace``. If the process ends, ProcessEnded replaces
    an exception of the block.

    :raises EngineError: the engine could not start the process
    :raises ProcessEnded: the process ended; has its exit status and the last lines of its output
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


def _start(engine: ContainerEngine, container: str) -> None:
    """Start a container, also if its last processes ended while the engine did not run.

    Docker Engine 20.10 then reuses the closed streams of the old processes, which would close the
    new terminal; the runtime shim refuses this start, and the next start has new streams. Or
    containerd still has the task of the old processes, which must be ended before the next start.
    Both errors must name this container, because an image chooses parts of other errors.
    """
    deadline = time.monotonic() + _MENDING_SECONDS
    while True:
        try:
            engine.start_container(container)
        except exception.EngineError as error:
            reason = str(error.kwargs.get("reason"))
            left = _TASK_LEFT.match(reason)
            found = left or _TERMINAL_CLOSED.match(reason)
            if time.monotonic() > deadline or not found:
                raise
            if found[1] != engine.inspect_container(container).id:
                raise
            LOG.warning("Failed to start container %s, will try again: %s", container, error)
            if left:
                containerd.end_shim(left[1])
            threading.Event().wait(_TRY_AGAIN_SECONDS)
        else:
            return


def _exit_code(engine: ContainerEngine, found: ContainerDetail, deadline: float) -> int | None:
    """Return the exit status of a process that ends before the deadline, None if it runs."""
    left = deadline - time.monotonic()
    code = engine.wait_container(found.id, left) if left > 0 else None
    # The engine reports an end later than the kernel does, on a busy host much later.
    if code is None and not _lives(found.pid):
        code = engine.wait_container(found.id, _EXIT_SECONDS)
    return code


def _lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def stop(engine: ContainerEngine, container: str, timeout: float) -> None:
    """Send a container's first process its stop signal; kill it after ``timeout`` seconds.

    Sends the stop signal once, because many programs end without clean-up at the second one. Thaws
    a frozen container first, because frozen processes do not receive signals. An init that does not
    handle systemd's signal is stopped by ``poweroff`` inside instead. Does nothing if the container
    does not run.

    :raises EngineError: the process runs even after SIGKILL
    """
    found = engine.inspect_container(container)
    if found.status == "paused":
        engine.unpause_container(found.id)
    elif found.status not in ("running", "restarting"):
        return
    if timeout > 0:
        with _asked_to_end(engine, found):
            if engine.wait_container(found.id, timeout) is not None:
                return
    LOG.info(
        "Container %s did not stop within %s s; killing it",
        found.name,
        timeout,
        instance_uuid=found.labels.get(naming.LABEL_UUID),
    )
    _send(engine, found.id, "SIGKILL")
    if engine.wait_container(found.id, _KILL_SECONDS) is None:
        raise exception.EngineError(
            operation="to stop the server", reason="its processes survived SIGKILL"
        )


@contextlib.contextmanager
def _asked_to_end(engine: ContainerEngine, found: ContainerDetail) -> Iterator[None]:
    """Ask a container's first process to end, and run the block."""
    # busybox, sysvinit and runit are installed at /sbin/init, too, and agree on no signal.
    other_init = found.stop_signal == SYSTEMD_POWER_OFF and not signals.handles(
        found.pid, signal.SIGRTMIN + 3
    )
    if other_init:
        try:
            terminal = engine.open_terminal(found.id, ["poweroff"])
        except exception.EngineError as error:
            LOG.debug("Failed to run poweroff in container %s: %s", found.name, error)
        else:
            with contextlib.closing(terminal.connection):
                yield
            return
    _send(engine, found.id, found.stop_signal)
    yield


def _send(engine: ContainerEngine, container: str, name: str) -> None:
    # Because the engine refuses a signal to a process that has just ended, only the wait counts.
    with contextlib.suppress(exception.EngineError):
        engine.signal_container(container, name)


def _last_lines(engine: ContainerEngine, container: str) -> str:
    text = engine.read_console(container, _LAST_BYTES).decode(errors="replace").strip()
    return " | ".join(line.strip() for line in text.splitlines()[-_LAST_LINES:])[-_LAST_CHARACTERS:]
