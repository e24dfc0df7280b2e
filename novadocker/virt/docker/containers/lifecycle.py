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
from novadocker.virt.docker.model import ContainerDetail, Terminal

LOG = logging.getLogger(__name__)

SYSTEMD_POWER_OFF = "SIGRTMIN+3"
"""The signal at which systemd stops as after ``systemctl halt`` (systemd(1))."""

_SYSTEMD_NUMBER = signal.SIGRTMIN + 3
# The signals whose default action ends a process, by the names that the engine has.
_SIGNALS = {
    SYSTEMD_POWER_OFF: _SYSTEMD_NUMBER,
    **{found.name: found.value for found in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)},
}
# kill(2) with -1 spares the caller and the first process. Not every sleep knows fractions.
_ALL_ENDED = b"novadocker: all others have ended"
_END_OTHERS = (
    "kill -{} -1; while kill -0 -1; do sleep 0.1 || sleep 1 || exit; done 2>/dev/null; "
    f"echo {_ALL_ENDED.decode()}"
)
# A shell ends when its last child has ended.
_LAST_SECONDS = 1.0

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

    Engines before 28 then reuse the closed streams of the old processes, which would close the new
    terminal; the runtime shim refuses this start, and the next start has new streams. Or
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
    handle systemd's signal is stopped by ``poweroff`` inside instead. If the first process does not
    handle its signal, the other processes get the signal, and it is killed when they have ended.
    Does nothing if the container does not run.

    :raises EngineError: the process runs even after SIGKILL
    """
    found = engine.inspect_container(container)
    if found.status == "paused":
        engine.unpause_container(found.id)
    elif found.status not in ("running", "restarting"):
        return
    if timeout > 0 and _ended(engine, found, timeout):
        return
    LOG.info(
        "Killing container %s, which did not stop",
        found.name,
        instance_uuid=found.labels.get(naming.LABEL_UUID),
    )
    _send(engine, found.id, "SIGKILL")
    if engine.wait_container(found.id, _KILL_SECONDS) is None:
        raise exception.EngineError(
            operation="to stop the server", reason="its processes survived SIGKILL"
        )


def _ended(engine: ContainerEngine, found: ContainerDetail, timeout: float) -> bool:
    """Ask a container's processes to end. Return True if the first one has ended in time."""
    number = _SIGNALS.get(found.stop_signal)
    command = _command_to_end(found, number)
    if command is not None:
        try:
            terminal = engine.open_terminal(found.id, command)
        except exception.EngineError as error:
            LOG.debug("Failed to run %s in container %s: %s", command[0], found.name, error)
        else:
            with contextlib.closing(terminal.connection):
                deadline = time.monotonic() + timeout
                # If the shell fails, the others may still need the time to end.
                if number != _SYSTEMD_NUMBER and _all_others_ended(terminal, deadline):
                    return engine.wait_container(found.id, _LAST_SECONDS) is not None
                left = max(deadline - time.monotonic(), _LAST_SECONDS)
                return engine.wait_container(found.id, left) is not None
    _send(engine, found.id, found.stop_signal)
    return engine.wait_container(found.id, timeout) is not None


def _command_to_end(found: ContainerDetail, number: int | None) -> list[str] | None:
    """Return a command that stops the system in a container; None if the stop signal does."""
    if number is None or signals.handles(found.pid, number):
        return None
    if number == _SYSTEMD_NUMBER:
        # busybox, sysvinit and runit are installed at /sbin/init, too, and agree on no signal.
        return ["poweroff"]
    # A program that ignores the signal knows why; a shell without a trap has children that do not.
    if signals.leaves_default(found.pid, number):
        return ["sh", "-c", _END_OTHERS.format(number)]
    return None


def _all_others_ended(terminal: Terminal, deadline: float) -> bool:
    """Read a terminal until its shell tells that all others have ended; False if it does not."""
    end = terminal.early
    with contextlib.suppress(TimeoutError, ConnectionError):
        while _ALL_ENDED not in end and (left := deadline - time.monotonic()) > 0:
            terminal.connection.settimeout(left)
            received = terminal.connection.recv(_LAST_BYTES)
            if not received:
                break
            end = (end + received)[-_LAST_BYTES:]
    return _ALL_ENDED in end


def _send(engine: ContainerEngine, container: str, name: str) -> None:
    # Because the engine refuses a signal to a process that has just ended, only the wait counts.
    with contextlib.suppress(exception.EngineError):
        engine.signal_container(container, name)


def _last_lines(engine: ContainerEngine, container: str) -> str:
    text = engine.read_console(container, _LAST_BYTES).decode(errors="replace").strip()
    return " | ".join(line.strip() for line in text.splitlines()[-_LAST_LINES:])[-_LAST_CHARACTERS:]
