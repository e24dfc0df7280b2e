# SPDX-License-Identifier: Apache-2.0
"""Removes what a stopped or cut-off cloud left in the kernel, and nothing of anybody else's.

Standard library only: it must work when everything else is gone.
"""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

from devcloud.network import list_namespaces, processes_in, remove_namespace
from devcloud.settings import Host, Settings
from devcloud.steps import TimedOut, wait_until

CGROUPS = Path("/sys/fs/cgroup")

RUNTIME_RECORDS = Path("/run/novadocker/containers")
"""Where the driver tells the runtime shim a container's namespace."""

AGENT_NAMESPACE = re.compile(r"(?:qdhcp|qrouter|snat|fip)-([0-9a-f-]{36})")
INSTANCE_NAMESPACE = re.compile(r"nova-([0-9a-f-]{36})")


def container_ids(settings: Settings, host: Host) -> dict[str, str]:
    """Return the names of a host's containers by id, read without its engine."""
    found = {}
    for config in (settings.host_data(host) / "docker" / "containers").glob("*/config.v2.json"):
        try:
            found[config.parent.name] = str(json.loads(config.read_text())["Name"]).lstrip("/")
        except (ValueError, KeyError):
            # written half when the power went; the engine leaves it out too
            continue
    return found


def own_namespaces(settings: Settings) -> list[str]:
    """Return the namespaces of this cloud's networks, routers and instances.

    Another OpenStack may have namespaces with such names on the same machine, so each must be
    known to this cloud's state folder.
    """
    instances = {name for host in settings.hosts for name in container_ids(settings, host).values()}
    owned = []
    for name in list_namespaces():
        if name in instances and INSTANCE_NAMESPACE.fullmatch(name):
            owned.append(name)
        match = AGENT_NAMESPACE.fullmatch(name)
        if match and any(
            next((settings.host_data(host) / "neutron").rglob(f"*{match[1]}*"), None)
            for host in settings.hosts
        ):
            owned.append(name)
    return owned


def alive(process: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def end_processes(processes: Iterable[int]) -> None:
    """End processes: SIGTERM, three seconds, SIGKILL.

    :raises StepFailed: one survives that.
    """
    own = {os.getpid(), os.getppid()}
    targets = [process for process in processes if process not in own]

    def send(number: signal.Signals) -> None:
        for process in targets:
            try:
                os.kill(process, number)
            except ProcessLookupError:
                continue

    def all_ended() -> bool:
        return not any(alive(process) for process in targets)

    send(signal.SIGTERM)
    try:
        wait_until(all_ended, what="", advice="", timeout=3, interval=0.05)
    except TimedOut:
        send(signal.SIGKILL)
        wait_until(
            all_ended,
            what=f"ending the processes {targets}",
            advice="look at them with ps; they may be waiting for a disk",
            timeout=20,
            interval=0.05,
        )


def container_processes(settings: Settings, host: Host) -> list[int]:
    """Return the first processes of a host's containers whose engine is gone."""
    found = []
    tasks = settings.host_run(host) / "docker" / "containerd" / "daemon"
    for file in tasks.glob("io.containerd.runtime.v2.task/moby/*/init.pid"):
        process = int(file.read_text() or 0)
        cgroup = Path(f"/proc/{process}/cgroup")
        # the number may belong to another process by now
        if process and cgroup.exists() and file.parent.name in cgroup.read_text():
            found.append(process)
    return found


def remove_cgroups(container: str) -> None:
    """Remove the empty control groups of a container that no runtime cleans up any more."""
    for group in [*CGROUPS.glob(f"*/docker/{container}"), *CGROUPS.glob(f"docker/{container}")]:
        for folder in [*sorted(group.rglob("*/"), reverse=True), group]:
            if folder.is_dir():
                folder.rmdir()


def own_mounts(settings: Settings) -> list[str]:
    """Return the mount points below the state folder, deepest first."""
    points = [
        line.split()[4].encode().decode("unicode_escape")
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    inside = [point for point in points if Path(point).is_relative_to(settings.folder)]
    return sorted(inside, key=len, reverse=True)


def cloud_namespaces(settings: Settings) -> list[str]:
    """Return the names of every namespace of the cloud, the hosts' own last."""
    return [*own_namespaces(settings), *sorted({host.namespace for host in settings.hosts})]


def end_all_processes(settings: Settings, spare: int = 0) -> None:
    """End every process in the cloud's namespaces, and containers that lost their engine.

    :param spare: a process that is left alone.
    """
    processes = {process for name in cloud_namespaces(settings) for process in processes_in(name)}
    end_processes(processes - {spare})
    for host in settings.hosts:
        end_processes(container_processes(settings, host))


def clear(settings: Settings) -> None:
    """Remove processes, mounts, namespaces and run files, as a restart of the machine would."""
    end_all_processes(settings)
    for host in settings.hosts:
        for container in container_ids(settings, host):
            remove_cgroups(container)
            (RUNTIME_RECORDS / container).unlink(missing_ok=True)
            shutil.rmtree(RUNTIME_RECORDS / f"{container}.files", ignore_errors=True)
    for point in own_mounts(settings):
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
    for name in cloud_namespaces(settings):
        remove_namespace(name)
    shutil.rmtree(settings.run, ignore_errors=True)
