# SPDX-License-Identifier: Apache-2.0
"""Supervisor's configuration, start and XML-RPC client. Standard library only."""

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
    """XML-RPC over a Unix socket."""

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
    """Return the environment of all programs, which contains nothing of the caller's."""
    return {
        "PATH": f"{settings.bin}:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(settings.run),
        "LANG": "C.UTF-8",
        "PYTHONWARNINGS": "ignore",
    }


def write_config(settings: Settings, programs: Iterable[Program]) -> None:
    """Write supervisor's configuration. A change of a program's files changes its environment."""
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
            # A program that exits within ten seconds is restarted five times, then it is FATAL.
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
        # A percent sign begins one of supervisor's own expansions.
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
    """Return True if supervisor answers."""
    try:
        proxy(settings).getState()
    except (OSError, http.client.HTTPException):
        return False
    return True


def become_subreaper() -> None:
    """Make the calling process the subreaper of its descendants' orphans.

    Where the machine's first process does not reap zombies, the agents' daemons (dnsmasq, haproxy,
    privsep's helpers) would remain as zombies.
    """
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("prctl(PR_SET_CHILD_SUBREAPER)")


def ensure_supervisor(settings: Settings) -> None:
    """Start supervisor inside the cloud's network namespace, or reload its configuration."""
    if is_alive(settings):
        ((added, changed, removed),) = proxy(settings).reloadConfig()
        stop_programs(settings, [*changed, *removed])
        for name in [*changed, *removed]:
            proxy(settings).removeProcessGroup(name)
        for name in [*added, *changed]:
            proxy(settings).addProcessGroup(name)
        return
    socket_file(settings).unlink(missing_ok=True)
    # MariaDB, RabbitMQ and the engine need many file descriptors, and programs inherit supervisor's
    # limit.
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
            raise StepFailed(f"supervisor exited with status {started.returncode}", ADVICE, log)
        return is_alive(settings)

    wait_until(ready, what="supervisor answers", advice=ADVICE, log=log, timeout=30, interval=0.05)


def states(settings: Settings) -> dict[str, str]:
    """Return the state of each program by name; empty if supervisor is not running."""
    try:
        listed = proxy(settings).getAllProcessInfo()
    except (OSError, http.client.HTTPException):
        return {}
    return {entry["name"]: entry["statename"] for entry in listed}


def process_id(settings: Settings, name: str) -> int:
    """Return the process id of a running program."""
    return int(proxy(settings).getProcessInfo(name)["pid"])


def start_programs(settings: Settings, names: Iterable[str]) -> list[str]:
    """Start the programs that are not running and return their names, without waiting for them."""
    current = states(settings)
    idle = [name for name in names if current[name] not in ("STARTING", "RUNNING")]
    for name in idle:
        proxy(settings).startProcess(name, False)
    return idle


def stop_programs(settings: Settings, names: Iterable[str]) -> None:
    """Stop programs concurrently and wait until they have ended.

    :raises StepFailed: a program survives its stop_wait and SIGKILL.
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
        advice="kill the processes by hand: python3 -m devcloud status",
        log=settings.log / "supervisord.log",
        timeout=60,
        interval=0.1,
    )


def require_running(settings: Settings, name: str) -> None:
    """Check that a program is running or starting, so that a wait for it fails at once.

    :raises StepFailed: supervisor is restarting the program or gave up.
    """
    state = states(settings).get(name, "missing")
    if state not in ("STARTING", "RUNNING"):
        raise StepFailed(
            f"The program {name} is {state}",
            f"fix the cause, then: python3 -m devcloud ctl restart {name}",
            settings.log / f"{name}.log",
        )


def control(settings: Settings, words: Sequence[str]) -> int:
    """Run supervisorctl on the cloud and return its exit status.

    :raises StepFailed: supervisor is not running.
    """
    if not is_alive(settings):
        raise StepFailed("The cloud is not running", "python3 -m devcloud up")
    command = [str(settings.bin / "supervisorctl"), "-c", str(config_file(settings)), *words]
    return subprocess.run(command, check=False, env=dict(os.environ)).returncode
