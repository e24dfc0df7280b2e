# SPDX-License-Identifier: Apache-2.0
"""Start, stop and clear away the daemons of the engine tests.

All of a session is below one state folder; its lock tells a running session from a cut-off one.
"""

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
from novadocker.privsep.network import namespace

PREFIX = "novadocker-engine-"
_START_SECONDS = 60
_STOP_SECONDS = 60


def make_state_folder() -> tuple[Path, IO[str]]:
    """Make a session's state folder after clearing those of cut-off sessions; hold the lock.

    Its file ``mark`` has what the UUIDs of the session's instances start with.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        clear_if_abandoned(left)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    (folder / "mark").write_text(f"7e57{secrets.token_hex(2)}")
    lock = (folder / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock


def clear_if_abandoned(folder: Path) -> None:
    """Remove a state folder, its processes and mounts, unless its session still runs."""
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        clear(folder)


def clear(folder: Path) -> None:
    """Remove a state folder and all that belongs to its session."""
    kill_all(folder)
    for mount in reversed(mounts_below(folder)):
        subprocess.run(["umount", "-l", mount], check=False)
    for name in namespaces_of(folder):
        namespaces.remove_name(f"{namespace.NAMESPACES}/{name}")
        namespaces.remove_name(f"{namespace.USER_NAMESPACES}/{name}")
    for record in records_of(folder):
        record.unlink()
    shutil.rmtree(folder)


def kill_all(folder: Path) -> list[int]:
    """Kill the processes that were started with a path below ``folder``, and their children."""
    victims = [victim for pid in processes_of(folder) for victim in (*_children(pid), pid)]
    for victim in victims:
        kill(victim, signal.SIGKILL)
    return victims


def processes_of(folder: Path) -> list[int]:
    """Return the processes that were started with a path below ``folder``, oldest first."""
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


def mounts_below(folder: Path) -> list[str]:
    """Return the mount points below ``folder``, in the order they were mounted."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines]
    return [point for point in points if point.startswith(f"{folder}/")]


def start(command: list[str], log: Path, ready: Callable[[], bool]) -> subprocess.Popen[bytes]:
    """Start a daemon in the foreground and wait until ``ready``; its last lines if it is not."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    deadline = time.monotonic() + _START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            raise RuntimeError(f"{command[0]} did not come up:\n{tail}")
        # a daemon offers no event for "listening"
        time.sleep(0.02)
    return process


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a daemon, by force after a while."""
    process.terminate()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def kill(pid: int, number: signal.Signals) -> None:
    """Send a signal; a process that is gone is fine."""
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
