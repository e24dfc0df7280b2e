# SPDX-License-Identifier: Apache-2.0
"""First processes that do not handle their stop signal.

That is other programs than systemd at ``/sbin/init`` (busybox, and sysvinit with ``--stock``), and
shells without a trap.
"""

import io
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from novadocker.privsep.guest import runtime
from novadocker.privsep.network import namespace
from novadocker.virt.docker.containers import lifecycle
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.model import Limits
from tests.engine import systemd_image
from tests.engine.busybox import busybox_archive
from tests.engine.systems import Server
from tests.waiting import until

LIMITS = Limits(cpu_shares=1024, memory_bytes=1 << 28, swap_bytes=0, pids=200)
REBOOTED, POWERED_OFF = 129, 130
SECONDS = 60
INITTAB = b"""::once:/bin/touch /booted
::shutdown:/bin/touch /ended
"""
# Debian's list of scripts has both already.
SCRIPTS = {
    "etc/rc.local": b"#!/bin/sh\nrm -f /ended\ntouch /booted\n",
    "etc/init.d/brightness": b"#!/bin/sh\n[ $1 = start ] || touch /ended\n",
}


@pytest.fixture
def create(
    engine_url: str, docker_client: docker.APIClient, instance_uuid: str
) -> Iterator[Callable[[Path], Server]]:
    """Yield a function that returns a server of an archive."""
    engine = Engine(engine_url, timeout=60, load_timeout=60)
    made: list[Server] = []

    def call(archive: Path) -> Server:
        docker_client.import_image(str(archive), repository="inits", tag="test")
        image = docker_client.inspect_image("inits:test")["Id"]
        namespace.wire_nics(instance_uuid, [])
        made.append(Server(engine, docker_client, image, instance_uuid, LIMITS))
        runtime.bind_container(made[-1].id, instance_uuid)
        return made[-1]

    yield call
    for server in made:
        docker_client.remove_container(server.id, force=True, v=True)
        docker_client.remove_image("inits:test", force=True)
    runtime.delete_namespace(instance_uuid)


def stop(server: Server) -> None:
    """Stop a server as Nova does; check that its init has shut the system down."""
    until(lambda: server.engine.has_file(server.id, "/booted"))
    began = time.monotonic()
    lifecycle.stop(server.engine, server.id, SECONDS)
    assert time.monotonic() - began < SECONDS
    assert server.engine.has_file(server.id, "/ended")
    state = server.client.inspect_container(server.id)["State"]
    assert (state["Running"], state["ExitCode"]) == (False, POWERED_OFF)


def test_busybox(create: Callable[[Path], Server], tmp_path: Path) -> None:
    buffer = io.BytesIO(busybox_archive())
    with tarfile.open(fileobj=buffer, mode="a") as archive:
        entry = tarfile.TarInfo("sbin/init")
        entry.type, entry.linkname = tarfile.SYMTYPE, "/bin/busybox"
        archive.addfile(entry)
        entry = tarfile.TarInfo("etc/inittab")
        entry.size = len(INITTAB)
        archive.addfile(entry, io.BytesIO(INITTAB))
    path = tmp_path / "busybox.tar"
    path.write_bytes(buffer.getvalue())
    server = create(path)
    server.start()
    stop(server)


def test_sysvinit(
    create: Callable[[Path], Server], home_network: str, pytestconfig: pytest.Config
) -> None:
    if not pytestconfig.getoption("--stock"):
        pytest.skip("only with --stock")
    server = create(systemd_image.sysvinit_archive(home_network))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, script in SCRIPTS.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(script), 0o755
            archive.addfile(entry, io.BytesIO(script))
    server.client.put_archive(server.id, "/", buffer.getvalue())
    for command, code in (("reboot", REBOOTED), ("poweroff", POWERED_OFF)):
        server.start()
        until(lambda: server.engine.has_file(server.id, "/booted"))
        assert server.run("rm", "/booted") == ""
        server.run(command)
        assert server.engine.wait_container(server.id, SECONDS) == code
    server.start()
    stop(server)


IN_THE_SHELL_FORM = """
(trap 'sleep 1; touch /ended; exit' TERM; touch /booted; while :; do sleep 0.1; done) &
wait
"""


# As many databases: a second signal ends it at once, without clean-up.
IMPATIENT_AT_A_SECOND_SIGNAL = """
clean() { trap 'exit 1' TERM; for i in $(seq 20); do sleep 0.1; done; touch /ended; exit; }
trap clean TERM
touch /booted
while :; do sleep 0.1; done
"""


@pytest.mark.parametrize(
    ("script", "timeout", "least", "ended"),
    [
        (IMPATIENT_AT_A_SECOND_SIGNAL, 60, 2, True),
        (IN_THE_SHELL_FORM, 60, 1, True),
        ("touch /booted; sleep 1d", 60, 0, False),
        # These have all their time: one begins other processes, the other ignores the signal.
        ("touch /booted; while :; do sleep 1; done", 3, 3, False),
        ("trap '' TERM; touch /booted; while :; do sleep 0.1; done", 3, 3, False),
    ],
)
def test_a_shell(
    engine: Engine,
    docker_client: docker.APIClient,
    busybox_image: str,
    script: str,
    timeout: float,
    least: float,
    ended: bool,
) -> None:
    container = docker_client.create_container(busybox_image, ["sh", "-c", script])["Id"]
    docker_client.start(container)
    until(lambda: engine.has_file(container, "/booted"))
    began = time.monotonic()
    lifecycle.stop(engine, container, timeout)
    assert least <= time.monotonic() - began < SECONDS
    assert engine.has_file(container, "/ended") == ended
    assert not docker_client.inspect_container(container)["State"]["Running"]
