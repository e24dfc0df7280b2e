# SPDX-License-Identifier: Apache-2.0
"""A Debian system of its own with systemd, in which an installation is tried as on a host.

A root directory is built once per list of packages and kept in the state directory. A system boots
from an overlay of it, in namespaces and in a control group of its own. Its network has no way out;
``prepare`` runs commands with the machine's network before the boot.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devcloud.settings import load_settings

HERE = Path(__file__).resolve().parent
ADDRESS = "192.0.2.11"
"""The system's own address, on its loopback device."""

_BUILD_SECONDS = 1500
_BOOT_SECONDS = 300
_END_SECONDS = 30
_CONTROL_GROUPS = Path("/sys/fs/cgroup")
# All processes of a system have one weight, beside single processes of the machine with 1024 (100
# with cgroup v2) each, so a system with the default weight starves beside other tests.
_WEIGHTS = {"cpu.shares": 8192, "cpu.weight": 800}

# Because no overlay can be the upper directory of another one, the engine's images and the storage
# of containerd are on the machine's file system.
_PLAIN_FOLDERS = ("var/lib/docker", "var/lib/containerd")

_CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"

_ENVIRONMENT = {
    # pip of a virtual environment has certificates of its own.
    "PIP_CERT": f"/{_CERTIFICATES}",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}


class CommandFailed(Exception):
    """A command in a system failed; the text has its output."""


@dataclass(frozen=True)
class System:
    """A running system.

    :ivar root: its root directory, as the machine sees it before the boot; the system's own mounts
        are not below it
    :ivar init: process id of its systemd on the machine
    :ivar groups: control groups for the commands that run in it
    """

    root: Path
    init: int
    groups: tuple[Path, ...]

    def run(
        self,
        *command: str,
        seconds: float = 120,
        check: bool = True,
        environment: Mapping[str, str] | None = None,
        text: str = "",
    ) -> str:
        """Run a command as root in the system and return its output and errors.

        :param text: standard input
        :raises CommandFailed: ``check`` is true, and the exit status is not 0
        """
        done = self._enter(command, seconds, environment or {}, text)
        if check and done.returncode != 0:
            raise CommandFailed(_failure(command, done))
        return done.stdout

    def status(self, *command: str, seconds: float = 120) -> int:
        """Run a command as root in the system and return its exit status."""
        return self._enter(command, seconds, {}, "").returncode

    def _enter(
        self, command: Sequence[str], seconds: float, environment: Mapping[str, str], text: str
    ) -> subprocess.CompletedProcess[str]:
        enter = ("nsenter", f"--target={self.init}", "--all", "--wdns=/", "--")
        joined = _within(self.groups, *enter, *command)
        return _run(joined, seconds, {**_ENVIRONMENT, **environment}, text)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Yield the directory of root directories and systems, locked against other runs, which wait.

    Deletes what an interrupted run left.
    """
    found = load_settings().folder / "install"
    found.mkdir(parents=True, exist_ok=True)
    with (found / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in found.glob("run-*"):
            _clear(left)
        yield found


def root_folder(held: Path, suite: str, packages: Sequence[str]) -> Path:
    """Return the root directory of a Debian with these packages; build it the first time.

    Keeps one root directory per suite and first package.

    :param held: what ``folder`` yields
    :raises CommandFailed: mmdebstrap failed
    """
    digest = hashlib.sha256("\0".join((suite, *packages)).encode()).hexdigest()[:12]
    name = f"root-{suite}-{packages[0] if packages else 'minimal'}"
    found = held / f"{name}-{digest}"
    if found.exists():
        return found
    for older in held.glob(f"{name}-*"):
        shutil.rmtree(older)
    draft = held / f"{name}-draft"
    included = ("systemd-sysv", "dbus", "iproute2", "procps", "ca-certificates", *packages)
    command = (
        *("mmdebstrap", "--mode=root", "--variant=minbase"),
        f"--include={','.join(included)}",
        '--aptopt=Apt::Install-Recommends "false"',
        # A root directory that was not built to its end is built anew, so nothing has to be synced.
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "locale")),
        # apt in a system has to know the packages of the suite
        "--skip=cleanup/apt/lists",
        *(suite, str(draft)),
    )
    done = _run(command, _BUILD_SECONDS, dict(os.environ), "")
    if done.returncode != 0:
        raise CommandFailed(_failure(command, done))
    draft.rename(found)
    return found


@contextlib.contextmanager
def copied(held: Path, root: Path) -> Iterator[Path]:
    """Yield a writable copy of a root directory, an overlay that is deleted afterwards."""
    # The control groups of the system have the directory's name, which no other checkout has.
    work = held / f"run-novadocker-{secrets.token_hex(8)}"
    for name in ("upper", "work", "root"):
        (work / name).mkdir(parents=True)
    merged = work / "root"
    options = f"lowerdir={root},upperdir={work / 'upper'},workdir={work / 'work'}"
    try:
        _mount("-t", "overlay", "-o", options, "overlay", str(merged))
        for place in _PLAIN_FOLDERS:
            (merged / place).mkdir(parents=True, exist_ok=True)
            plain = work / place.replace("/", "-")
            plain.mkdir()
            _mount("--bind", str(plain), str(merged / place))
        yield merged
    finally:
        _clear(work)


def prepare(root: Path, *command: str, seconds: float = 600, network: bool = True) -> str:
    """Run a command in a root directory that is not booted. No service starts.

    :param network: whether the command has the machine's network, or none
    :return: the command's output and errors
    :raises CommandFailed: its exit status is not 0
    """
    script = (
        'mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && '
        'mount --bind "$2" "$1/usr/sbin/policy-rc.d" && '
        'root=$1 && shift 2 && exec chroot "$root" "$@"'
    )
    # The machine's network includes its certificates, of a proxy for example.
    for path in ("etc/resolv.conf", _CERTIFICATES):
        shutil.copy(f"/{path}", root / path)
    policy = root / "usr/sbin/policy-rc.d"
    policy.touch()
    apart = [] if network else ["--net"]
    outer = ["unshare", "--mount", *apart, "--fork", "sh", "-c", script, "sh", str(root)]
    done = _run([*outer, str(HERE / "inside/policy-rc.d"), *command], seconds, _ENVIRONMENT, "")
    policy.unlink()
    if done.returncode != 0:
        raise CommandFailed(_failure(command, done))
    return done.stdout


@contextlib.contextmanager
def booted(root: Path, name: str = "compute1") -> Iterator[System]:
    """Boot a root directory; yield its system when its services have started, and kill it then.

    :param root: what ``copied`` yields
    :param name: the host name
    :raises CommandFailed: the system does not start in time
    """
    groups = _make_groups(root.parent.name)
    told = root.parent / "notify"
    # The machine's kernel is not the system's, so it has no modules for it.
    masked = root / "etc/systemd/system/systemd-modules-load.service"
    masked.unlink(missing_ok=True)
    masked.symlink_to("/dev/null")
    (root / "etc/hostname").write_text(f"{name}\n")
    (root / "etc/hosts").write_text(f"127.0.0.1 localhost\n{ADDRESS} {name}\n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as answers:
        answers.bind(str(told))
        flags = ("mount", "uts", "ipc", "net", "pid", "cgroup", "fork", "kill-child=KILL")
        outer = subprocess.Popen(
            _within(
                groups,
                *("unshare", *(f"--{flag}" for flag in flags)),
                *(str(HERE / "inside/boot"), str(root), name, ADDRESS, str(told)),
            ),
            stdin=subprocess.DEVNULL,
            stderr=(root.parent / "boot.log").open("wb"),
        )
        try:
            init = _wait_for_start(outer, answers, root.parent / "boot.log")
            # systemd would wait for ever until somebody reads its further messages.
            answers.close()
            yield System(root, init, tuple(map(_group_of_commands, groups)))
        finally:
            # unshare collects its child and ends; systemd does not remain as a zombie.
            for child in _children(outer):
                os.kill(child, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                outer.wait(_END_SECONDS)
            outer.kill()
            outer.wait()
            _end_groups(root.parent.name)


def _within(groups: Sequence[Path], *command: str) -> list[str]:
    """Return a command that runs another one in control groups."""
    enter = 'for group in $1; do echo $$ >"$group/cgroup.procs"; done; shift; exec "$@"'
    return ["sh", "-c", enter, "sh", " ".join(map(str, groups)), *command]


def _group_of_commands(group: Path) -> Path:
    """Return the control group, in one hierarchy, for commands beside a system's services."""
    # With cgroup v2, a group that has groups with controllers takes no process, but systemd's has
    # none.
    scope = group / "init.scope"
    return scope if scope.exists() else group


def _wait_for_start(outer: subprocess.Popen[bytes], answers: socket.socket, log: Path) -> int:
    """Return the process id of a system's systemd when systemd reports that it has started."""
    end = time.monotonic() + _BOOT_SECONDS
    while (left := end - time.monotonic()) > 0 and outer.poll() is None:
        answers.settimeout(min(left, 1))
        try:
            message = answers.recv(4096).decode()
        except TimeoutError:
            continue
        if "READY=1" in message.splitlines():
            (child,) = _children(outer)
            return child
    raise CommandFailed(f"The system did not start:\n{log.read_text(errors='replace')}")


def _children(process: subprocess.Popen[bytes]) -> list[int]:
    """Return the process ids of a process's children; none if it has ended."""
    if process.poll() is not None:
        return []
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(child) for child in children.split()]


def _make_groups(name: str) -> list[Path]:
    """Create the control group of a system in each hierarchy of the machine."""
    if (_CONTROL_GROUPS / "cgroup.procs").exists():
        parents = [_CONTROL_GROUPS]
    else:
        found = (path.parent for path in _CONTROL_GROUPS.glob("*/cgroup.procs"))
        parents = sorted({path.resolve() for path in found})
    groups = [parent / name for parent in parents]
    for group in groups:
        group.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            # With cgroup v1, a new group of cpuset takes no process before both are set.
            if group.parent.name == "cpuset":
                (group / name).write_text((group.parent / name).read_text())
        for name, weight in _WEIGHTS.items():
            if (group / name).exists():
                (group / name).write_text(str(weight))
    return groups


def _end_groups(name: str) -> None:
    """Kill the processes of a system's control groups and delete the groups. Idempotent."""
    groups = [*_CONTROL_GROUPS.glob(f"*/{name}"), *_CONTROL_GROUPS.glob(name)]
    end = time.monotonic() + _END_SECONDS
    for top in groups:
        for group, _, _ in os.walk(top, topdown=False):
            # The shim of a container deletes its group itself.
            with contextlib.suppress(FileNotFoundError):
                while time.monotonic() < end:
                    for pid in Path(group, "cgroup.procs").read_text().split():
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(int(pid), signal.SIGKILL)
                    try:
                        os.rmdir(group)
                        break
                    except OSError:
                        # The kernel empties the group after the death of its last process.
                        time.sleep(0.05)


def _clear(work: Path) -> None:
    """Delete a copy of a root directory, its mounts and processes."""
    _end_groups(work.name)
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for target in sorted(mounted, reverse=True):
        if Path(target).is_relative_to(work):
            subprocess.run(["umount", "-l", target], check=True, timeout=60)
    shutil.rmtree(work)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, timeout=60)


def _run(
    command: Sequence[str], seconds: float, environment: Mapping[str, str], text: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=environment,
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )


def _failure(command: Sequence[str], done: subprocess.CompletedProcess[str]) -> str:
    tail = "\n".join(done.stdout.splitlines()[-40:])
    return f"{' '.join(command)} exited with status {done.returncode}:\n{tail}"
