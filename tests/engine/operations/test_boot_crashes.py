# SPDX-License-Identifier: Apache-2.0
"""nova-compute or the engine is killed while a server that boots from a volume is built or deleted.

By default the tests kill at some points; with ``--every-point`` at all of them.
"""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from nova import conf

from novadocker import privsep
from novadocker.privsep.guest import root_volumes, volume_devices, volumes
from novadocker.runtime import record
from tests.engine import crashing, loop_devices
from tests.engine.hosts import ComputeHost
from tests.engine.loop_devices import is_claimed, mounts_of
from tests.engine.operations.test_crashes import (
    Case,
    Rig,
    check_points,
    destroy,
    forgotten,
    power_off,
    reboot,
    rebooted,
    spawn,
    unchanged,
)
from tests.engine.servers import IMAGE_ID, Nova, Server
from tests.waiting import until

SIZE = 160 << 20

processes = multiprocessing.get_context("forkserver")


def build_again(nova: Nova, server: Server) -> None:
    """Delete what is left of a server, and build another one from the same volume."""
    nova.destroy(server)
    assert mounts_of(server.root) == []
    assert not is_claimed(server.root)
    again = nova.spawn(server)
    assert len(mounts_of(server.root)) == 1
    nova.destroy(again)


CASES = {
    "spawn": Case(spawn, build_again, (5, 9, 12, 15), known=forgotten),
    "destroy": Case(destroy, destroy, (2, 5, 8), unchanged, forgotten),
    "reboot": Case(reboot, reboot, (3, 6, 9), unchanged),
}

ENGINE_CASES = {
    "spawn": Case(spawn, build_again, (4,)),
    "reboot": Case(reboot, rebooted, (2, 4), unchanged),
    "power off": Case(power_off, rebooted, (3,), unchanged),
}


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    """Yield a volume."""
    with loop_devices.volume(tmp_path / "volume", SIZE) as found:
        yield found
        assert mounts_of(found) == []
        assert not is_claimed(found)


@pytest.fixture
def rig(compute_host: ComputeHost, device: str) -> Rig:
    processes.set_forkserver_preload([crashing.__name__, __name__])
    return Rig(compute_host, device)


@pytest.mark.parametrize("name", CASES)
def test_killed_in_the_middle(rig: Rig, name: str, pytestconfig: pytest.Config) -> None:
    check_points(pytestconfig, CASES[name], rig.trial, f"{name}: killed")


@pytest.mark.parametrize("name", ENGINE_CASES)
def test_the_engine_dies_in_the_middle(rig: Rig, name: str, pytestconfig: pytest.Config) -> None:
    check_points(pytestconfig, ENGINE_CASES[name], rig.engine_trial, f"{name}: the engine dies")


def fill_without_end(instance_uuid: str, device: str) -> None:
    """Fill a volume from a pipe that yields a part of an archive, as a privileged process."""
    conf.CONF([], project="nova", default_config_files=[])
    for context in (privsep.volume_pctxt, privsep.transfer_pctxt):
        context.client_mode = False
    found = Server.connection(device)
    volumes.hold(
        instance_uuid,
        {
            "volume_id": found["serial"],
            "path": "/dev/vda",
            "source": device,
            "writable": True,
            "shared": False,
            "root": True,
            "rates": dict.fromkeys(record.RATES, 0),
        },
    )
    read, write = os.pipe()
    os.write(write, bytes(200))
    root_volumes.fill(instance_uuid, IMAGE_ID, (os.getpid(), read))


def test_the_privileged_process_is_killed_while_it_fills_a_volume(
    compute_host: ComputeHost, device: str
) -> None:
    """No mount is left, and the next build makes the file system anew."""
    host = compute_host
    server = replace(host.new_server("small", (1,)), root=device)
    process = processes.Process(target=fill_without_end, args=(server.uuid, device))
    process.start()
    try:
        until(lambda: mounts_of(device))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        until(lambda: not is_claimed(device))
        assert mounts_of(device) == []
        with open(device, "rb") as file:
            file.seek(-4096, os.SEEK_END)
            assert file.read().startswith(b"novadocker is filling this volume")
        nova = host.start_nova()
        try:
            server = nova.spawn(server)
            assert len(mounts_of(device)) == 1
            nova.destroy(server)
        finally:
            nova.stop()
    finally:
        process.kill()
        volume_devices.forget(server.uuid)
