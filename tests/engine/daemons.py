# SPDX-License-Identifier: Apache-2.0
"""Start, stop and clean-up of the engine tests' daemons.

All files of a session are below one state directory, whose lock distinguishes a running session
from an interrupted one.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from novadocker.linux import namespaces
from novadocker.privsep.guest import runtime
from novadocker.privsep.network import given, id_ranges, namespace
from novadocker.runtime import idmapped
from novadocker.state_files import namespaces as marks
from tests import slowness

PREFIX = "novadocker-engine-"
_START_SECONDS = 60 * slowness.FACTOR
_STOP_SECONDS = 60 * slowness.FACTOR


def make_state_folder() -> tuple[Path, IO[str]]:
    """Delete interrupted sessions' state directories; return a new one and its lock.

    Its file ``mark`` contains the prefix of the UUIDs of the session's instances.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        clear_if_abandoned(left)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    (folder / "mark").write_text(f"7e57{secrets.token_hex(2)}")
    lock = (folder / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock


def clear_if_abandoned(folder: Path) -> None:
    """Delete a state directory, its processes and mounts, unless its session is still running."""
    with contextlib.ExitStack() as opened:
        try:
            lock = opened.enter_context((folder / "lock").open("r+"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, FileNotFoundError):
            return
        # Another session may have deleted the directory before this one got the lock.
        if os.fstat(lock.fileno()).st_nlink:
            clear(folder)


def clear(folder: Path) -> None:
    """Delete a state directory and everything that belongs to its session."""
    kill_all(folder)
    for mount in reversed(mounts_below(folder)):
        subprocess.run(["umount", "-l", mount], check=False)
    for name in namespaces_of(folder):
        namespaces.unmount_namespace(f"{namespace.NAMESPACES}/{name}")
        namespaces.unmount_namespace(f"{namespace.USER_NAMESPACES}/{name}")
    for record in (
        *records_of(folder),
        *given_records_of(folder),
        *marks_of(folder),
        *ids_of(folder),
    ):
        record.unlink()
    shutil.rmtree(folder)


def kill_all(folder: Path) -> list[int]:
    """Kill the processes whose arguments name a path below ``folder``, and their children."""
    victims = [victim for pid in processes_of(folder) for victim in (*_children(pid), pid)]
    for victim in victims:
        kill(victim, signal.SIGKILL)
    return victims


def processes_of(folder: Path) -> list[int]:
    """Return the processes whose arguments name a path below ``folder``, oldest first."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            named = f"{folder}/".encode() in entry.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if named and int(entry.parent.name) != os.getpid():
            found.append(int(entry.parent.name))
    return sorted(found)


def namespaces_of(folder: Path) -> list[str]:
    """Return the names of the network namespaces of a session's instances."""
    mark = (folder / "mark").read_text()
    return [path.name for path in Path(namespace.NAMESPACES).glob(f"nova-{mark}*")]


def records_of(folder: Path) -> list[Path]:
    """Return the runtime records that name a session's instances."""
    mark = (folder / "mark").read_text()
    files = [path for path in runtime.FOLDER.glob("*") if path.is_file()]
    return [path for path in files if f"/nova-{mark}" in path.read_text()]


def given_records_of(folder: Path) -> list[Path]:
    """Return the records of what a session's instances were given."""
    mark = (folder / "mark").read_text()
    return list(given.FOLDER.glob(f"nova-{mark}*"))


def marks_of(folder: Path) -> list[Path]:
    """Return the marks of the network namespaces of a session's instances."""
    mark = (folder / "mark").read_text()
    return list((marks.RUN / marks.MARKS).glob(f"nova-{mark}*"))


def ids_of(folder: Path) -> list[Path]:
    """Return the ranges of ids that a session's instances hold."""
    mark = (folder / "mark").read_text()
    return list(id_ranges.FOLDER.glob(f"nova-{mark}*"))


def mounts_below(folder: Path) -> list[str]:
    """Return the mount points below ``folder``, in the order in which they were mounted."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines]
    return [point for point in points if point.startswith(f"{folder}/")]


def mounts_of_shim(data_root: Path) -> list[str]:
    """Return the host's mount points below an engine's data root, and those of the runtime shim."""
    shim = [idmapped.PLACE, idmapped.DEVICES]
    own = [point for point in mounts_below(Path(idmapped.PLACE).parent) if point in shim]
    return mounts_below(data_root) + own


def start(command: list[str], log: Path, ready: Callable[[], bool]) -> subprocess.Popen[bytes]:
    """Start a daemon in the foreground and wait until ``ready``.

    :raises RuntimeError: the daemon ended or was not ready in time; the text has its last lines
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    deadline = time.monotonic() + _START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            raise RuntimeError(f"{command[0]} did not start:\n{tail}")
        # A daemon offers no event for the start of listening.
        time.sleep(0.02)
    return process


def stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate a daemon, or kill it after 60 seconds."""
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def kill(pid: int, number: signal.Signals) -> None:
    """Send a signal. Does nothing if the process does not exist."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _children(pid: int) -> list[int]:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        text = " ".join((thread / "children").read_text() for thread in threads)
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(child) for child in text.split()]
