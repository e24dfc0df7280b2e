# SPDX-License-Identifier: Apache-2.0
"""An engine that is killed without live-restore, hangs, or has a full or a missing disk."""

import os
import re
import shlex
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from nova import exception as nova_exception
from nova.compute import power_state

from novadocker import exception
from novadocker.privsep.guest import containerd
from tests import CHECKOUT, slowness
from tests.engine.busybox import busybox_archive
from tests.engine.daemons import mounts_below
from tests.engine.engines import OwnEngine, own_engine
from tests.engine.hosts import HostOf
from tests.suspending import suspend
from tests.waiting import until

_SECONDS = 60 * slowness.FACTOR
ETC = CHECKOUT / "etc"


def test_killed_without_live_restore(state_folder: Path, host_of: HostOf) -> None:
    with (
        own_engine(state_folder / "mortal", "overlay2", live_restore=False) as engine,
        host_of(engine) as host,
    ):
        nova, survey = host.start_nova(), host.survey
        server = nova.spawn(host.new_server("capped", (1,)))
        survey.mark(server)
        engine.kill()
        with pytest.raises(exception.EngineUnavailable):
            nova.state(server)
        engine.start()
        # When it starts, the engine stops all containers of its previous run.
        host.client.wait(server.name, timeout=_SECONDS)
        assert nova.state(server) == power_state.SHUTDOWN
        nova.power_on(server)
        survey.check_running(server)
        survey.check_nothing_else([server])
        nova.destroy(server)
        survey.check_nothing_else([])
        nova.stop()


def test_hanging(session_engine: OwnEngine, host_of: HostOf) -> None:
    with host_of(session_engine, api_timeout=2 * slowness.FACTOR) as host:
        nova = host.start_nova()
        server = nova.spawn(host.new_server(ports=(1,)))
        host.survey.mark(server)
        suspend(session_engine.pid)
        began = time.monotonic()
        try:
            # A suspended engine runs all requests later, so each of these operations begins with a
            # query.
            for operation in (nova.state, nova.power_off, nova.reboot):
                with pytest.raises(exception.EngineUnavailable):
                    operation(server)
        finally:
            os.kill(session_engine.pid, signal.SIGCONT)
        assert time.monotonic() - began < _SECONDS
        assert nova.state(server) == power_state.RUNNING
        host.survey.check_running(server)
        nova.destroy(server)
        host.survey.check_nothing_else([])
        nova.stop()


def test_a_full_disk(state_folder: Path, host_of: HostOf) -> None:
    with (
        own_engine(state_folder / "full", "overlay2", "ext4") as engine,
        host_of(engine) as host,
    ):
        nova, survey = host.start_nova(), host.survey
        server = nova.spawn(host.new_server(ports=(1,)))
        survey.mark(server)
        ballast = engine.data_root.parent / "ballast"
        _fill(ballast)
        with pytest.raises((exception.EngineError, nova_exception.NovaException)) as caught:
            nova.spawn(host.new_server(ports=(2,)))
        assert "no space left" in str(caught.value)
        survey.check_running(server)
        survey.check_nothing_else([server])
        ballast.unlink()
        after = nova.spawn(host.new_server(ports=(3,)))
        survey.mark(after)
        survey.check_running(after)
        for each in (server, after):
            nova.destroy(each)
        survey.check_nothing_else([])
        nova.stop()


def test_a_data_root_that_is_not_mounted(state_folder: Path, host_of: HostOf) -> None:
    """The host boots without the engine's disk: servers are missing, and no data is lost."""
    with (
        own_engine(state_folder / "unmounted", "overlay2") as engine,
        host_of(engine) as host,
    ):
        nova, survey = host.start_nova(), host.survey
        server = nova.spawn(host.new_server("capped", (1,)))
        survey.mark(server)
        nova.stop()
        engine.lose_power()
        subprocess.run(["mount", "-t", "tmpfs", "none", engine.data_root], check=True)
        engine.start_all()

        nova = host.start_nova([replace(server, power_state=power_state.RUNNING)])
        with pytest.raises(nova_exception.InstanceNotFound):
            nova.state(server)
        for operation in (nova.power_on, nova.power_off, nova.reboot):
            with pytest.raises(exception.ContainerLost):
                operation(server)
        nova.periodic()
        nova.stop()
        engine.lose_power()
        subprocess.run(["umount", engine.data_root], check=True)
        engine.start_all()

        nova = host.start_nova([replace(server, power_state=power_state.SHUTDOWN)])
        assert nova.state(server) == power_state.SHUTDOWN
        nova.power_on(server)
        survey.check_running(server)
        survey.check_nothing_else([server])
        nova.destroy(server)
        survey.check_nothing_else([])
        nova.stop()


def test_a_server_that_ended_while_the_engine_was_dead(
    session_engine: OwnEngine, host_of: HostOf
) -> None:
    """Engines before 28 close the terminal of such a container at its next start.

    Engine 28 leaves it open, but sends it no input until the next start but one.
    """

    def echoes() -> bool:
        terminal = host.client.attach_socket(server.name, {"stdin": 1, "stdout": 1, "stream": 1})
        terminal._sock.settimeout(_SECONDS)
        terminal._sock.sendall(b"still there")
        found: bytes = terminal._sock.recv(64)
        terminal.close()
        return found == b"still there"

    with host_of(session_engine) as host:
        nova = host.start_nova()
        server = nova.spawn(host.new_server())
        host.survey.mark(server)
        process = psutil.Process(host.client.inspect_container(server.name)["State"]["Pid"])
        session_engine.kill()
        process.kill()
        process.wait(_SECONDS)
        session_engine.start()
        assert nova.state(server) == power_state.SHUTDOWN
        nova.power_on(server)
        if not echoes():
            assert int(host.client.version()["Version"].split(".")[0]) >= 28
            nova.power_off(server)
            nova.power_on(server)
            assert echoes()
        host.survey.check_running(server)
        nova.destroy(server)
        host.survey.check_nothing_else([])
        nova.stop()


def test_what_containerd_keeps_of_an_ended_container(
    session_engine: OwnEngine, host_of: HostOf, tmp_path: Path
) -> None:
    subprocess.run(["tar", "-x", "-C", tmp_path], input=busybox_archive(), check=True)
    ctr = ["ctr", "--address", session_engine.containerd_socket, "--namespace", "moby"]
    left = "0123456789abcdef" * 4

    def tasks() -> str:
        return subprocess.run([*ctr, "tasks", "list"], capture_output=True, text=True).stdout

    with host_of(session_engine) as host:
        nova = host.start_nova()
        server = nova.spawn(host.new_server())
        host.survey.mark(server)
        subprocess.run([*ctr, "run", "-d", "--rootfs", tmp_path, left, "/bin/true"], check=True)
        until(lambda: "STOPPED" in tasks())
        try:
            assert containerd.end_shim(left)
            until(lambda: left not in tasks())
            assert not containerd.end_shim(left)
            # This shim has processes.
            assert not containerd.end_shim(host.client.inspect_container(server.name)["Id"])
            host.survey.check_running(server)
        finally:
            subprocess.run([*ctr, "containers", "delete", left], check=True)
        nova.destroy(server)
        host.survey.check_nothing_else([])
        nova.stop()


def test_half_made_roots_are_unmounted_before_the_engine_starts(tmp_path: Path) -> None:
    """An engine that is killed during a create leaves a mounted root; servers' own roots remain."""
    unit = ETC / "systemd/docker.service.d/novadocker.conf"
    (before,) = re.findall("^ExecStartPre=-(.*)$", unit.read_text(), re.MULTILINE)
    half_made, whole = (tmp_path / "overlay2" / name / "merged" for name in ("1f-init", "1f"))
    for root in (half_made, whole):
        root.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", root], check=True)
    try:
        for _ in range(2):
            subprocess.run(shlex.split(before.replace("/var/lib/docker", str(tmp_path))))
            assert mounts_below(tmp_path) == [str(whole)]
    finally:
        for mount in mounts_below(tmp_path):
            subprocess.run(["umount", mount], check=True)


def _fill(file: Path) -> None:
    """Write to a file until its file system is full; dd's exit status is then 1."""
    done = subprocess.run(["dd", "if=/dev/zero", f"of={file}", "bs=1M"], capture_output=True)
    assert b"No space left" in done.stderr
