# SPDX-License-Identifier: Apache-2.0
"""Supervisor: its configuration, its start and its XML-RPC. Standard library only."""

import configparser
import ctypes
import http.client
import os
import resource
import shlex
import subprocess
import xmlrpc.client
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from devcloud.network import inside
from devcloud.program import Program
from devcloud.settings import NAMESPACE, Settings
from devcloud.steps import StepFailed, wait_until
from devcloud.unix_http import UnixConnection

PR_SET_CHILD_SUBREAPER = 36
"""From linux/prctl.h."""

ADVICE = "python3 -m devcloud down, then up again"

RUNNING_STATES = ("STARTING", "RUNNING", "BACKOFF", "STOPPING")


class _UnixTransport(xmlrpc.client.Transport):
    """XML-RPC over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:  # noqa: ARG002
        return UnixConnection(self._path)


def config_file(settings: Settings) -> Path:
    """Return the path of supervisor's configuration."""
    return settings.etc / "supervisord.conf"


def socket_file(settings: Settings) -> Path:
    """Return the path of supervisor's socket."""
    return settings.run / "supervisor.sock"


def service_environment(settings: Settings) -> dict[str, str]:
    """Return the environment every program starts with; nothing of the caller's gets in."""
    return {
        "PATH": f"{settings.bin}:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(settings.run),
        "LANG": "C.UTF-8",
        "PYTHONWARNINGS": "ignore",
    }


def write_config(settings: Settings, programs: Iterable[Program]) -> None:
    """Write supervisor's configuration; a program whose files changed differs from before."""
    config = configparser.RawConfigParser()
    config["unix_http_server"] = {"file": str(socket_file(settings)), "chmod": "0700"}
    config["supervisord"] = {
        "logfile": str(settings.log / "supervisord.log"),
        "logfile_backups": "1",
        "pidfile": str(settings.run / "supervisord.pid"),
        "directory": str(settings.run),
        "user": "root",
    }
    config["rpcinterface:supervisor"] = {
        "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
    }
    config["supervisorctl"] = {"serverurl": f"unix://{socket_file(settings)}"}
    for program in programs:
        environment = dict(program.environment, DEVCLOUD_CONFIG=program.config_digest())
        section = {
            "command": shlex.join(program.command),
            "environment": ",".join(f'{name}="{value}"' for name, value in environment.items()),
            "autostart": "false",
            "autorestart": "true",
            # one that dies while it loads is tried again a few times, then given up
            "startsecs": "10",
            "startretries": "5",
            "stopsignal": program.stop_signal,
            "stopwaitsecs": str(program.stop_wait),
            "killasgroup": "true",
            "redirect_stderr": "true",
            "stdout_logfile": str(settings.log / f"{program.name}.log"),
            "stdout_logfile_maxbytes": "50MB",
            "stdout_logfile_backups": "1",
        }
        if program.user is not None:
            section["user"] = program.user
        # a per cent sign is supervisor's own expansion
        config[f"program:{program.name}"] = {
            key: value.replace("%", "%%") for key, value in section.items()
        }
    with config_file(settings).open("w") as output:
        config.write(output)


def proxy(settings: Settings) -> Any:
    """Return supervisor's XML-RPC methods."""
    transport = _UnixTransport(socket_file(settings))
    return xmlrpc.client.ServerProxy("http://localhost", transport=transport).supervisor


def is_alive(settings: Settings) -> bool:
    """Return whether supervisor answers."""
    try:
        proxy(settings).getState()
    except (OSError, http.client.HTTPException):
        return False
    return True


def become_subreaper() -> None:
    """Make the calling process adopt, and so reap, what its descendants leave behind.

    The agents' daemons (dnsmasq, haproxy, privsep's helpers) would stay as zombies where the
    machine's first process does not reap them.
    """
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("prctl(PR_SET_CHILD_SUBREAPER)")


def ensure_supervisor(settings: Settings) -> None:
    """Start supervisor inside the cloud's network namespace, or let it read its changed config."""
    if is_alive(settings):
        ((added, changed, removed),) = proxy(settings).reloadConfig()
        stop_programs(settings, [*changed, *removed])
        for name in [*changed, *removed]:
            proxy(settings).removeProcessGroup(name)
        for name in [*added, *changed]:
            proxy(settings).addProcessGroup(name)
        return
    socket_file(settings).unlink(missing_ok=True)
    # MariaDB, RabbitMQ and the engine want many; the programs inherit supervisor's limit
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    log = settings.log / "supervisord-start.log"
    with log.open("w") as output:
        started = subprocess.Popen(
            inside(
                NAMESPACE, [settings.bin / "supervisord", "--nodaemon", "-c", config_file(settings)]
            ),
            env=service_environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=become_subreaper,
        )

    def ready() -> bool:
        if started.poll() is not None:
            raise StepFailed(f"supervisor exited with {started.returncode}", ADVICE, log)
        return is_alive(settings)

    wait_until(ready, what="supervisor answers", advice=ADVICE, log=log, timeout=30, interval=0.05)


def states(settings: Settings) -> dict[str, str]:
    """Return the state of every program by name, empty when supervisor is not running."""
    try:
        listed = proxy(settings).getAllProcessInfo()
    except (OSError, http.client.HTTPException):
        return {}
    return {entry["name"]: entry["statename"] for entry in listed}


def process_id(settings: Settings, name: str) -> int:
    """Return the process of a running program."""
    return int(proxy(settings).getProcessInfo(name)["pid"])


def start_programs(settings: Settings, names: Iterable[str]) -> list[str]:
    """Start those of the programs that do not run, and return their names.

    Does not wait for them to be ready.
    """
    current = states(settings)
    idle = [name for name in names if current[name] not in ("STARTING", "RUNNING")]
    for name in idle:
        proxy(settings).startProcess(name, False)
    return idle


def stop_programs(settings: Settings, names: Iterable[str]) -> None:
    """Stop programs side by side and wait until they have ended.

    :raises StepFailed: one is still there after its time and a SIGKILL.
    """
    current = states(settings)
    wanted = [name for name in names if current.get(name) in RUNNING_STATES]
    for name in wanted:
        try:
            proxy(settings).stopProcess(name, False)
        except xmlrpc.client.Fault as fault:
            if "NOT_RUNNING" not in fault.faultString:
                raise
    wait_until(
        lambda: not any(states(settings).get(name) in RUNNING_STATES for name in wanted),
        what=f"stopping {' '.join(wanted)}",
        advice="end the processes by hand: python3 -m devcloud status",
        log=settings.log / "supervisord.log",
        timeout=60,
        interval=0.1,
    )


def require_running(settings: Settings, name: str) -> None:
    """Fail at once when a program that is being waited for has died.

    :raises StepFailed: supervisor is trying it again or gave up.
    """
    state = states(settings).get(name, "missing")
    if state not in ("STARTING", "RUNNING"):
        raise StepFailed(
            f"{name} is {state}",
            f"mend the cause, then: python3 -m devcloud ctl restart {name}",
            settings.log / f"{name}.log",
        )


def control(settings: Settings, words: Sequence[str]) -> int:
    """Run supervisorctl on the cloud and return its exit status."""
    if not is_alive(settings):
        raise StepFailed("the cloud is not up", "python3 -m devcloud up")
    command = [str(settings.bin / "supervisorctl"), "-c", str(config_file(settings)), *words]
    return subprocess.run(command, check=False, env=dict(os.environ)).returncode
