# SPDX-License-Identifier: Apache-2.0
"""Removal of the kernel objects that a stopped or interrupted cloud left, and of no others.

Standard library only, because it must work when everything else is gone.
"""

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

from devcloud import loop_devices
from devcloud.network import list_namespaces, processes_in, remove_namespace
from devcloud.settings import Host, Settings, observers_file
from devcloud.steps import TimedOut, wait_until

CGROUPS = Path("/sys/fs/cgroup")

RUNTIME_RECORDS = Path("/run/novadocker/containers")
"""The driver writes each container's network namespace here for the runtime shim."""

GIVEN_RECORDS = Path("/run/novadocker/given")
"""The driver records here what it gave to the devices in each network namespace."""

NAMESPACE_MARKS = Path("/run/novadocker/networks")
"""The driver marks here the network namespaces that it created."""

AGENT_NAMESPACE = re.compile(r"(?:qdhcp|qrouter|snat|fip|ovnmeta)-([0-9a-f-]{36})")
INSTANCE_NAMESPACE = re.compile(r"nova-([0-9a-f-]{36})")


def container_ids(settings: Settings, host: Host) -> dict[str, str]:
    """Return the names of a host's containers by id, read without its engine."""
    found = {}
    for config in (settings.host_data(host) / "docker" / "containers").glob("*/config.v2.json"):
        try:
            found[config.parent.name] = str(json.loads(config.read_text())["Name"]).lstrip("/")
        except (ValueError, KeyError):
            # A power failure leaves a truncated file; the engine ignores such a container too.
            continue
    return found


def own_namespaces(settings: Settings) -> list[str]:
    """Return the namespaces of this cloud's networks, routers and instances.

    Another OpenStack on the same machine may have namespaces with such names, so this cloud's state
    directory must contain the id in each name.
    """
    instances = {name for host in settings.hosts for name in container_ids(settings, host).values()}
    noted = observers_file(settings.folder)
    observers = noted.read_text().split() if noted.exists() else []
    owned = []
    for name in list_namespaces():
        if name in observers:
            owned.append(name)
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
    """Return True if a process exists and is not a zombie."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def end_processes(processes: Iterable[int]) -> None:
    """Terminate processes: SIGTERM, wait at most three seconds, SIGKILL.

    :raises StepFailed: a process survives SIGKILL for 20 seconds.
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
            what=f"terminating the processes {targets}",
            advice="look at them with ps; they may be in uninterruptible sleep on a disk",
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
        # Another process may have the number by now.
        if process and cgroup.exists() and file.parent.name in cgroup.read_text():
            found.append(process)
    return found


def remove_cgroups(container: str) -> None:
    """Delete the empty control groups of a container whose runtime is gone."""
    for group in [*CGROUPS.glob(f"*/docker/{container}"), *CGROUPS.glob(f"docker/{container}")]:
        for folder in [*sorted(group.rglob("*/"), reverse=True), group]:
            if folder.is_dir():
                folder.rmdir()


def own_mounts(settings: Settings) -> list[str]:
    """Return the mount points below the state directory, deepest first."""
    points = [
        line.split()[4].encode().decode("unicode_escape")
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    ]
    inside = [point for point in points if Path(point).is_relative_to(settings.folder)]
    return sorted(inside, key=len, reverse=True)


def cloud_namespaces(settings: Settings) -> list[str]:
    """Return the names of all network namespaces of the cloud, the hosts' own last."""
    return [*own_namespaces(settings), *sorted({host.namespace for host in settings.hosts})]


def metadata_proxies(settings: Settings, host: Host) -> list[int]:
    """Return the proxies of OVN's metadata agent, whose namespaces only their host can list.

    A proxy that outlived its namespace would keep the agent from starting another one.
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        folder = os.fsencode(settings.host_data(host) / "neutron") + b"/"
        if words[0] == b"haproxy" and any(word.startswith(folder) for word in words):
            found.append(int(process.name))
    return found


def end_all_processes(settings: Settings, spare: int = 0) -> None:
    """Terminate all processes in the cloud's namespaces, and the containers without an engine.

    :param spare: a process to leave running.
    """
    processes = {process for name in cloud_namespaces(settings) for process in processes_in(name)}
    end_processes(processes - {spare})
    for host in settings.hosts:
        end_processes(container_processes(settings, host))
        end_processes(metadata_proxies(settings, host))


def clear(settings: Settings) -> None:
    """Delete processes, mounts, namespaces and runtime files, as a reboot of the machine would."""
    end_all_processes(settings)
    for host in settings.hosts:
        for container in container_ids(settings, host):
            remove_cgroups(container)
            (RUNTIME_RECORDS / container).unlink(missing_ok=True)
            shutil.rmtree(RUNTIME_RECORDS / f"{container}.files", ignore_errors=True)
    for point in own_mounts(settings):
        subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)
    for device in loop_devices.devices_of(settings.data / "cinder"):
        subprocess.run(["losetup", "--detach", device], check=False, capture_output=True)
    for name in cloud_namespaces(settings):
        remove_namespace(name)
        (GIVEN_RECORDS / name).unlink(missing_ok=True)
        (NAMESPACE_MARKS / name).unlink(missing_ok=True)
    shutil.rmtree(settings.run, ignore_errors=True)
