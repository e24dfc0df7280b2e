# SPDX-License-Identifier: Apache-2.0
"""A container with an operation that hangs in the engine, which holds the container's lock."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import docker
import psutil
import pytest
import requests
from nova import exception as nova_exception
from nova.compute import power_state

from novadocker import exception
from tests import slowness
from tests.engine.engines import SHIM, OwnEngine, remove_containers
from tests.engine.hosts import ComputeHost, HostOf
from tests.suspending import suspend
from tests.waiting import until

_PATIENCE_SECONDS = 2 * slowness.FACTOR


@contextmanager
def hung_removal(host: ComputeHost, url: str, name: str) -> Iterator[None]:
    """Hang the removal of a container while the block runs."""
    pid = host.client.inspect_container(name)["State"]["Pid"]
    shim = psutil.Process(pid).ppid()
    suspend(shim)
    client = docker.APIClient(url, timeout=60)
    options = {"force": True, "v": True}
    removal = threading.Thread(target=client.remove_container, args=(name,), kwargs=options)
    try:
        removal.start()
        probe = docker.APIClient(url, timeout=slowness.FACTOR)
        while True:
            try:
                probe.inspect_container(name)
            except requests.ReadTimeout:
                break
        yield
    finally:
        os.kill(shim, signal.SIGCONT)
        removal.join(60 * slowness.FACTOR)
        client.close()


def test_only_its_own_server_waits(session_engine: OwnEngine, host_of: HostOf) -> None:
    with host_of(session_engine, api_timeout=_PATIENCE_SECONDS) as host:
        nova = host.start_nova()
        hung, other = nova.spawn(host.new_server()), nova.spawn(host.new_server())
        container_id = host.client.inspect_container(hung.name)["Id"]
        abandoned = nova.driver._services.abandoned
        with hung_removal(host, session_engine.url, hung.name):
            with pytest.raises(exception.ContainerHangs, match="answers, but"):
                nova.driver.power_off(hung.instance())
            # The engine's list waits for no container.
            assert nova.state(hung) == power_state.RUNNING
            with pytest.raises(nova_exception.ConsoleNotAvailable, match="hangs in the Docker"):
                nova.driver.get_console_output(nova.context, hung.instance())
            # The container is that of a failed build.
            abandoned.remove(container_id, lambda: None)
            third = nova.spawn(host.new_server())
            nova.periodic()
            nova.reboot(other)
            for server in (other, third):
                assert nova.state(server) == power_state.RUNNING
        for server in (hung, other, third):
            with suppress(exception.EngineError):
                nova.destroy(server)
        host.survey.check_nothing_else([])
        nova.stop()


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """Return the path of a FIFO; while it exists, starts wait for a line from it."""
    return tmp_path / "gate"


@pytest.fixture
def slow_engine(own_network: None, state_folder: Path, gate: Path) -> Iterator[OwnEngine]:
    """Yield an engine whose runtime creates containers only when the gate is open."""
    folder = state_folder / "gated"
    folder.mkdir()
    runtime = folder / "runtime"
    wait = f'case " $* " in *" create "*) [ ! -p {gate} ] || read _ <{gate};; esac'
    runtime.write_text(f'#!/bin/sh\n{wait}\nexec {SHIM} "$@"\n')
    runtime.chmod(0o755)
    engine = OwnEngine(folder, runtimes={"novadocker": {"path": str(runtime)}})
    yield engine
    remove_containers(engine.url)
    engine.stop()


def test_a_start_that_hangs_holds_up_no_other(
    slow_engine: OwnEngine, host_of: HostOf, gate: Path
) -> None:
    with host_of(slow_engine, api_timeout=_PATIENCE_SECONDS) as host:
        nova = host.start_nova()
        hung, other = nova.spawn(host.new_server()), nova.spawn(host.new_server())
        nova.power_off(hung)
        os.mkfifo(gate)
        with pytest.raises(exception.ContainerHangs, match="answers, but"):
            nova.power_on(hung)
        gate_of_the_start = gate.rename(gate.with_name("passed"))
        with pytest.raises(nova_exception.ConsoleNotAvailable, match="hangs in the Docker"):
            nova.driver.get_console_output(nova.context, hung.instance())
        third = nova.spawn(host.new_server())
        nova.periodic()
        nova.reboot(other)
        for server in (other, third):
            assert nova.state(server) == power_state.RUNNING
        assert nova.state(hung) == power_state.SHUTDOWN
        gate_of_the_start.write_text("\n")
        until(lambda: nova.state(hung) == power_state.RUNNING)
        for server in (hung, other, third):
            nova.destroy(server)
        host.survey.check_nothing_else([])
        nova.stop()
