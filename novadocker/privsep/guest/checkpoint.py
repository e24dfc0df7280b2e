# SPDX-License-Identifier: Apache-2.0
"""Privileged functions that write the memory of a frozen instance to the disk, by runc and CRIU.

The images of an instance's processes are below ``records.CHECKPOINTS``, in the directory
``<host>/<instance>/<container id>``. They contain the instance's secrets, so only root can read
the directory of the instance. Others see only that it exists.

The suffix of the directory's name tells what it is worth: ``.draft`` is being written; ``.frozen``
is whole, and the processes live and are frozen; without a suffix, the processes are killed, so that
the images are all that is left of them; with the suffix ``records.USED`` a start has restored the
images, or has begun to.
"""

import errno
import json
import os
import re
import shutil
import signal
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil

from novadocker import naming, privsep
from novadocker.linux import cgroup, libc, openat
from novadocker.linux.files import replace_file, sync_directory
from novadocker.privsep import arguments
from novadocker.privsep.guest import containerd
from novadocker.privsep.guest.config_drive import HOST
from novadocker.privsep.guest.runtime import FOLDER as RECORDS
from novadocker.runtime import record as records

FOLDER = Path(records.CHECKPOINTS)
OLDEST_CRIU = (4, 1)

_DRAFT = ".draft"
_FROZEN = ".frozen"
_RUN = "novadocker-run"
_PROGRAM = re.compile(r"(?:(?:/[\w.@+-]+)+/criu)?")
# A time as the engine has it.
_TIME = re.compile(r"[0-9TZ:.+-]{1,64}")
_VERSION = re.compile(r"Version: ([0-9]+)\.([0-9]+)")
_SBIN = "/usr/local/sbin:/usr/sbin"
_CHECK_SECONDS = 30
_DUMP_SECONDS = 900
_LARGEST_LOG = 16 << 20
# For what the images have beside the memory.
_SPARE_BYTES = 64 << 20
# TIME_WAIT and LISTEN in include/net/tcp_states.h
_WITHOUT_PEER = frozenset({"06", "0A"})
_RESIDENT = {
    1: ("total_rss", "total_shmem", "total_swap"),
    2: ("anon", "shmem"),
}


def exists(host: str, instance_uuid: str) -> bool:
    """Return True if an instance has images on this host.

    Needs no privilege, unless the operator has made the directory unreadable. Each start of a
    server asks this.

    :raises ValueError: an argument is malformed
    """
    try:
        _folder(host, instance_uuid).stat()
    except FileNotFoundError:
        return False
    except PermissionError:
        return instance_uuid in list_instances(host)
    return True


@privsep.interior_pctxt.entrypoint
def list_instances(host: str) -> list[str]:
    """Return the UUIDs of the instances that have images on this host.

    :raises ValueError: the argument is malformed
    """
    try:
        names = os.listdir(FOLDER / arguments.text(HOST, host))
    except FileNotFoundError:
        return []
    return [name for name in names if naming.UUID.fullmatch(name)]


@privsep.storage_pctxt.entrypoint
def why_impossible(program: str) -> str:
    """Return why CRIU can't save processes of this host; empty if it can.

    :param program: path of the program ``criu``; empty for the one in the helper's PATH
    :raises ValueError: the argument is malformed
    """
    try:
        criu = _find(_program(program))
        version = _VERSION.search(_run([criu, "--version"], _CHECK_SECONDS))
        if version is None:
            return f"{criu} does not tell its version"
        if (int(version[1]), int(version[2])) < OLDEST_CRIU:
            oldest = ".".join(map(str, OLDEST_CRIU))
            return f"{criu} has the version {version[1]}.{version[2]}, older than {oldest}"
        _run([criu, "check"], _CHECK_SECONDS)
    except OSError as error:
        return error.strerror or str(error)
    return ""


@privsep.storage_pctxt.entrypoint
def dump(
    host: str, instance_uuid: str, container_id: str, pid: int, started_at: str, program: str
) -> None:
    """Write the memory of a frozen container to the disk. The container stays frozen.

    :param pid: id of the container's first process
    :param started_at: when the engine started the container
    :param program: as for ``why_impossible``
    :raises ValueError: an argument is malformed
    :raises OSError: CRIU can't save the processes, or the disk has too little room
    """
    container = arguments.container_id(container_id)
    process = arguments.process(pid)
    run = arguments.text(_TIME, started_at)
    target = _images(host, instance_uuid, container)
    criu = _find(_program(program))
    with openat.pinned(process) as descriptor:
        openat.check_process(container, process, descriptor)
        _check_frozen(container, process)
        try:
            _check_tree(container, process)
            state = _runc_state(container, process)
        except psutil.Error as error:
            # The kernel may kill a frozen process when memory runs out.
            raise ProcessLookupError(errno.ESRCH, f"the container has ended: {error}") from error
        _check_connections(process)
        _make_folders(target.parent)
        _check_room(container, process)
        draft, frozen, used = (
            target.with_name(f"{container}{suffix}") for suffix in (_DRAFT, _FROZEN, records.USED)
        )
        # The processes live, so all that earlier attempts have left is useless.
        for left in (draft, frozen, used):
            with suppress(FileNotFoundError):
                shutil.rmtree(left)
        draft.mkdir(0o700)
        try:
            _checkpoint(criu, state, container, draft)
            (draft / _RUN).write_text(_run_of(container, run))
            _sync(draft)
            _sync_files(container, process)
            draft.rename(frozen)
        except BaseException:
            # The processes live, so nothing is lost.
            shutil.rmtree(draft)
            raise


@privsep.interior_pctxt.entrypoint
def end_processes(host: str, instance_uuid: str, container_id: str) -> bool:
    """Kill the processes of a frozen container whose memory is on the disk. Idempotent.

    With cgroup v1 they end as soon as the container is thawed, and run no more before.

    :returns: False if their memory is not on the disk; then nothing is killed
    :raises ValueError: an argument is malformed
    """
    container = arguments.container_id(container_id)
    target = _images(host, instance_uuid, container)
    frozen = target.with_name(f"{container}{_FROZEN}")
    if frozen.exists():
        # Images without a suffix are of an earlier run, because the processes lived until now.
        with suppress(FileNotFoundError):
            shutil.rmtree(target)
        frozen.rename(target)
        sync_directory(target.parent)
    if not target.exists():
        return False
    for pid, owner in cgroup.processes():
        if owner == container:
            with suppress(ProcessLookupError), openat.pinned(pid) as process:
                openat.check_process(container, pid, process)
                signal.pidfd_send_signal(process, signal.SIGKILL)
    return True


@privsep.interior_pctxt.entrypoint
def has_ended_processes(host: str, instance_uuid: str, container_id: str, started_at: str) -> bool:
    """Return True if ``end_processes`` has begun to kill processes whose images are not used.

    :param started_at: when the engine started the container for the last time
    :raises ValueError: an argument is malformed
    """
    container = arguments.container_id(container_id)
    run = arguments.text(_TIME, started_at)
    try:
        saved = (_images(host, instance_uuid, container) / _RUN).read_text()
    except FileNotFoundError:
        return False
    return saved == _run_of(container, run)


@privsep.network_pctxt.entrypoint
def restore_next(
    host: str, instance_uuid: str, container_id: str, started_at: str, program: str
) -> bool:
    """Make the next start of a container go on with its images.

    :param started_at: when the engine started the container for the last time
    :param program: as for ``why_impossible``
    :returns: False if the container has no images, or has run after they were written
    :raises ValueError: an argument is malformed
    :raises OSError: there is no CRIU, an earlier restore was interrupted, or the images are those
        of another container
    """
    container = arguments.container_id(container_id)
    images = _images(host, instance_uuid, container)
    run = arguments.text(_TIME, started_at)
    given = _program(program)
    try:
        saved = (images / _RUN).read_text()
    except FileNotFoundError:
        _check_unused(images.with_name(f"{container}{records.USED}"), _run_of(container, run))
        return False
    owner, _, saved_run = saved.partition(" ")
    if owner != container:
        raise OSError(errno.EINVAL, "the images are those of another container")
    if saved_run != run:
        return False
    record = RECORDS / container
    found = records.parse(record.read_bytes())
    found.restore = records.Restore(str(images), os.path.dirname(_find(given)))
    # The shim reads the record by the same rules.
    content = records.serialize(found)
    records.parse(content)
    replace_file(record, content, mode=0o644, sync=False)
    return True


def _check_unused(used: Path, run: str) -> None:
    """Check that no restore was interrupted.

    If the engine has recorded a later start than that of the images, the restored server has run,
    and only the deletion of its images was interrupted.

    :param used: directory of images that a start has restored, or has begun to restore
    :param run: the last run of the container, as in the images
    :raises OSError: a restore was interrupted
    """
    if not used.exists():
        return
    with suppress(FileNotFoundError):
        if (used / _RUN).read_text() != run:
            return
    raise OSError(
        errno.EBUSY,
        "an earlier resume was interrupted, and the server may have run since; "
        "a hard reboot starts it anew",
    )


@privsep.interior_pctxt.entrypoint
def discard(host: str, instance_uuid: str) -> None:
    """Delete the images of an instance. Does nothing if it has none.

    :raises ValueError: an argument is malformed
    """
    with suppress(FileNotFoundError):
        shutil.rmtree(_folder(host, instance_uuid))


def _folder(host: str, instance_uuid: str) -> Path:
    return FOLDER / arguments.text(HOST, host) / arguments.instance_uuid(instance_uuid)


def _images(host: str, instance_uuid: str, container: str) -> Path:
    return _folder(host, instance_uuid) / container


def _run_of(container: str, run: str) -> str:
    """Return the text that names the run of a container whose memory the images are."""
    return f"{container} {run}"


def _program(value: object) -> str:
    return arguments.without_detours(arguments.text(_PROGRAM, value))


def _find(program: str) -> str:
    """Return the path of the program ``criu``, which only root can change.

    runc is searched in its directory first, so no link in a directory of another user may remain.

    :param program: its path; empty to search it
    :raises OSError: it does not exist, or another user than root can change it
    """
    named = program or shutil.which("criu") or shutil.which("criu", path=_SBIN)
    if not named:
        raise FileNotFoundError(errno.ENOENT, "there is no program criu on this host")
    path = os.path.realpath(named)
    # runc searches this name.
    if os.path.basename(path) != "criu":
        raise FileNotFoundError(errno.ENOENT, f"{named} is a link to a program of another name")
    folder = openat.open_trusted(os.path.dirname(path))
    try:
        status = os.stat("criu", dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, f"there is no program {named}") from None
    finally:
        os.close(folder)
    if status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(errno.EPERM, f"users other than root can change {path}")
    return path


def _run(command: list[str], seconds: float, path: str = "") -> str:
    """Run a program; return its output.

    :param path: a directory to look for programs first
    :raises OSError: it fails, or takes longer
    """
    environment = {**os.environ, "LC_ALL": "C"}
    if path:
        environment["PATH"] = os.pathsep.join((path, os.environ.get("PATH", os.defpath)))
    name = os.path.basename(command[0])
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TimeoutError(errno.ETIMEDOUT, f"{name} took more than {seconds:.0f} s") from None
    output = done.stdout.decode(errors="replace")
    if done.returncode:
        last = (output.strip().splitlines() or ["it says nothing"])[-1]
        raise OSError(errno.EIO, f"{name} failed: {last[:200]}")
    return output


def _check_frozen(container: str, pid: int) -> None:
    """Check that no process of a container runs.

    :raises OSError: the container is not frozen
    """
    found = cgroup.groups(pid, container)
    if found.version == 1:
        frozen = found.read("freezer", "freezer.state") == "FROZEN"
    else:
        frozen = "frozen 1" in (found.read("", "cgroup.events") or "").splitlines()
    if not frozen:
        raise OSError(errno.EBUSY, "the container is not frozen")


def _check_tree(container: str, pid: int) -> None:
    """Check that all processes of a container descend from its first process.

    CRIU would leave out the others, which ``docker exec`` started, without an error.

    :raises OSError: one does not
    """
    own = {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
    for process, owner in cgroup.processes():
        if owner == container and process not in own:
            raise OSError(errno.EBUSY, f"process {process} was started from outside (docker exec)")


def _check_connections(pid: int, root: Path = Path("/")) -> None:
    """Check that no TCP connection is open in the network namespace of a frozen process.

    When the processes are killed, the kernel goes on closing their connections for minutes, and
    sends the end of each to its peer when the ports are up again. CRIU can't restore a connection
    that the kernel still has.

    :param root: directory that contains /proc
    :raises OSError: one is open
    """
    for name in ("tcp", "tcp6"):
        with suppress(FileNotFoundError), (root / f"proc/{pid}/net/{name}").open() as source:
            next(source)
            # The first line is the heading.
            if any(line.split()[3] not in _WITHOUT_PEER for line in source):
                raise OSError(errno.EBUSY, "it has open TCP connections")


def _runc_state(container: str, pid: int) -> str:
    """Return the directory of runc's state, from the container's shim of containerd.

    :raises OSError: it is unknown
    """
    shim = psutil.Process(pid).parent()
    if (
        shim is None
        or not containerd.is_shim(shim.cmdline(), container)
        # A tenant can give a process of its own such a command line.
        or os.stat(f"/proc/{shim.pid}/ns/pid").st_ino != os.stat("/proc/self/ns/pid").st_ino
    ):
        raise OSError(errno.ESRCH, "the first process is not a child of containerd's shim")
    words = shim.cmdline()
    namespace = words[words.index("-namespace") + 1]
    try:
        options = json.loads(Path(f"/proc/{shim.pid}/cwd/options.json").read_bytes())
        return os.path.join(options["root"], namespace)
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(errno.EINVAL, "containerd's options of the runtime are malformed") from error


def _make_folders(instance: Path) -> None:
    """Create the directory of an instance's images and those above it."""
    folders = {FOLDER.parent: 0o755, FOLDER: 0o755, instance.parent: 0o755, instance: 0o700}
    for folder, mode in folders.items():
        with suppress(FileExistsError):
            folder.mkdir(mode)
            sync_directory(folder.parent)


def _check_room(container: str, pid: int) -> None:
    """Check that the disk has room for the memory of a container.

    :raises OSError: it has not
    """
    found = cgroup.groups(pid, container)
    memory = 0
    for line in (found.read("memory", "memory.stat") or "").splitlines():
        name, _, value = line.partition(" ")
        if name in _RESIDENT[found.version]:
            memory += int(value)
    if found.version == 2:
        memory += int(found.read("", "memory.swap.current") or 0)
    room = os.statvfs(FOLDER)
    free = room.f_bavail * room.f_frsize
    if free < memory + _SPARE_BYTES:
        needed = (memory + _SPARE_BYTES) >> 20
        raise OSError(
            errno.ENOSPC, f"the memory needs {needed} MiB in {FOLDER}, which has {free >> 20} MiB"
        )


def _checkpoint(criu: str, state: str, container: str, images: Path) -> None:
    """Run ``runc checkpoint``.

    :raises OSError: it fails
    """
    command = ["runc", "--root", state, "checkpoint", "--leave-running", *records.CRIU_OPTIONS]
    command += ["--image-path", str(images), "--work-path", str(images), container]
    try:
        _run(command, _DUMP_SECONDS, os.path.dirname(criu))
    except OSError as error:
        reason = _first_error(images / "dump.log") or error.strerror
        raise OSError(error.errno, reason) from error


def _first_error(log: Path) -> str:
    """Return the first error in CRIU's log, at most 200 characters; empty without one."""
    with suppress(FileNotFoundError), log.open("rb") as source:
        source.seek(max(0, os.fstat(source.fileno()).st_size - _LARGEST_LOG))
        errors = [line for line in source.read().split(b"\n") if b"Error" in line]
        # The first one is the reason of the others.
        if errors:
            text = errors[0].decode(errors="replace").partition("Error")[2]
            return f"CRIU: {text.partition('): ')[2] or text}"[:200]
    return ""


def _sync_files(container: str, pid: int) -> None:
    """Write the files of a frozen container to the disk, as its memory knows them.

    After a power loss, the processes would go on with files that lack their last changes.
    """
    with openat.open_root(container, pid) as root:
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
        try:
            libc.syncfs(descriptor)
        finally:
            os.close(descriptor)


def _sync(folder: Path) -> None:
    for entry in os.scandir(folder):
        descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    sync_directory(folder)
