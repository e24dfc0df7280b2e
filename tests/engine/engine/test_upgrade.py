# SPDX-License-Identifier: Apache-2.0
"""Another version of the engine and its containerd under running servers."""

import contextlib
import os
from pathlib import Path

import pytest
from nova.compute import power_state

from novadocker import exception
from tests.engine import packages
from tests.engine.engines import OwnEngine, own_engine
from tests.engine.hosts import ComputeHost, HostOf
from tests.engine.servers import Nova, Server
from tests.waiting import until

SNAPSHOT_ID = "5eed0000-0000-4000-8000-00000000000{}"


def replace_engine(
    engine: OwnEngine, nova: Nova, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop the engine and its containerd, as an upgrade of their packages does; start others.

    Then wait until nova-compute uses them. A downgrade makes a request of an old session fail.
    """

    def version() -> str:
        with contextlib.suppress(exception.EngineUnavailable):
            return nova.driver._services.engine.info().version
        return before

    before = version()
    engine.stop()
    monkeypatch.setenv("PATH", path)
    engine.start_all()
    until(lambda: version() != before)


def pid_of(host: ComputeHost, server: Server) -> int:
    return int(host.client.inspect_container(server.name)["State"]["Pid"])


def echoes(host: ComputeHost, server: Server) -> bool:
    """Return True if the terminal of the first process echoes what is written to it."""
    terminal = host.client.attach_socket(server.name, {"stdin": 1, "stdout": 1, "stream": 1})
    terminal._sock.settimeout(60)
    terminal._sock.sendall(b"still there")
    found: bytes = terminal._sock.recv(64)
    terminal.close()
    return found == b"still there"


def command_runs(host: ComputeHost, server: Server) -> bool:
    run = host.client.exec_create(server.name, ["cat", "/marker"])
    return server.uuid.encode() in host.client.exec_start(run["Id"])


def use(host: ComputeHost, nova: Nova, server: Server) -> Server:
    """Do with a running server what does not restart it; return its new record."""
    driver, instance = nova.driver, server.instance()
    assert nova.state(server) == power_state.RUNNING
    host.survey.check_running(server)
    assert echoes(host, server)
    assert command_runs(host, server)
    driver.pause(instance)
    assert nova.state(server) == power_state.PAUSED
    driver.unpause(instance)
    assert nova.state(server) == power_state.RUNNING
    assert nova.driver._services.engine.read_usage(server.name).memory_bytes > 0
    server = nova.detach(nova.attach(server, 9), 9)
    nova.periodic()
    host.survey.check_running(server)
    return server


def restart(host: ComputeHost, nova: Nova, server: Server) -> None:
    nova.power_off(server)
    host.survey.check_stopped(server)
    nova.power_on(server)
    host.survey.check_running(server)
    assert echoes(host, server)


@pytest.fixture(scope="module")
def paths(pytestconfig: pytest.Config, home_network: str) -> list[str]:
    """Return the PATHs of Debian's newer engines, the older one first."""
    if pytestconfig.getoption("--engine"):
        pytest.skip("the upgrade begins with the engine of Debian 12")
    return [packages.search_path(suite, home_network) for suite in ("trixie", "forky")]


def test_servers_outlast_two_upgrades(
    state_folder: Path, host_of: HostOf, monkeypatch: pytest.MonkeyPatch, paths: list[str]
) -> None:
    with own_engine(state_folder / "upgraded", "overlay2") as engine, host_of(engine) as host:
        nova = host.start_nova()
        server, other, stopped = (
            nova.spawn(host.new_server("large", ports)) for ports in ((1, 2), (3,), ())
        )
        for made in (server, other, stopped):
            host.survey.mark(made)
        nova.power_off(stopped)
        pid = pid_of(host, server)
        versions = [host.client.version()["Version"]]
        for number, path in enumerate(paths):
            replace_engine(engine, nova, path, monkeypatch)
            versions.append(host.client.version()["Version"])
            server = use(host, nova, server)
            assert pid_of(host, server) == pid
            restart(host, nova, other)
            host.survey.check_stopped(stopped)
            nova.snapshot(server, SNAPSHOT_ID.format(number))
            new = nova.spawn(host.new_server(ports=(4,)))
            host.survey.mark(new)
            use(host, nova, new)
            nova.destroy(new)
            host.survey.check_nothing_else([server, other, stopped])
        assert len(set(versions)) == 3
        nova.power_on(stopped)
        host.survey.check_running(stopped)
        restart(host, nova, server)
        for left in (server, other, stopped):
            nova.destroy(left)
        host.survey.check_nothing_else([])
        nova.stop()


def test_a_downgrade_stops_the_servers(
    state_folder: Path, host_of: HostOf, monkeypatch: pytest.MonkeyPatch, paths: list[str]
) -> None:
    """nova-compute need not be restarted."""
    older, newest = os.environ["PATH"], paths[-1]
    with own_engine(state_folder / "downgraded", "overlay2") as engine, host_of(engine) as host:
        nova = host.start_nova()
        replace_engine(engine, nova, newest, monkeypatch)
        server = nova.spawn(host.new_server("large", (1,)))
        host.survey.mark(server)
        replace_engine(engine, nova, older, monkeypatch)
        assert nova.state(server) == power_state.SHUTDOWN
        with pytest.raises(exception.EngineError, match="containerd was downgraded"):
            nova.power_on(server)
        new = nova.spawn(host.new_server(ports=(4,)))
        host.survey.mark(new)
        use(host, nova, new)
        nova.destroy(new)
        # A reboot of the host ends the shim of the newer containerd.
        engine.lose_power()
        engine.start_all()
        nova.power_on(server)
        use(host, nova, server)
        nova.destroy(server)
        host.survey.check_nothing_else([])
        nova.stop()
