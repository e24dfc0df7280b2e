# SPDX-License-Identifier: Apache-2.0
"""nova-compute as a user that can reach the engine only through the proxy."""

import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import vif_plug_ovs.privsep
from nova import conf
from nova.compute import power_state
from oslo_privsep import priv_context

from novadocker import privsep
from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.images import store
from tests import CHECKOUT, slowness
from tests.engine import servers
from tests.engine.engines import OwnEngine
from tests.engine.hosts import ComputeHost, compute_host
from tests.engine.servers import Nova, Server
from tests.engine.switch import Switch, use_switch
from tests.fake_glance import FakeGlance

SNAPSHOT = "5eed0000-0000-4000-8000-000000000007"
# No user of the machine has these ids.
NOVA = 64_901
PROXY = 64_902
GROUP = 64_903
_SECONDS = 120 * slowness.FACTOR

processes = multiprocessing.get_context("forkserver")

# The modules are imported first, because the user may not be able to read the checkout.
_PROXY = """
import os, sys
from novadocker.cmd import engine_proxy
listener, user, group = map(int, sys.argv[1:4])
os.dup2(listener, 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.setgroups([group])
os.setgid(user)
os.setuid(user)
engine_proxy.main(sys.argv[4:])
"""


@dataclass(frozen=True)
class Proxied:
    """A compute host with a proxy.

    :ivar url: the proxy's
    """

    host: ComputeHost
    glance: FakeGlance
    url: str


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a directory that nova-compute's user can read, unlike the session's."""
    found = Path(tempfile.mkdtemp(prefix="novadocker-proxied-"))
    found.chmod(0o755)
    yield found
    shutil.rmtree(found)


@pytest.fixture
def proxied(
    folder: Path,
    session_engine: OwnEngine,
    ovs: Switch,
    state_folder: Path,
    new_instance_uuid: Callable[[], str],
) -> Iterator[Proxied]:
    state_folder.chmod(0o711)
    (ovs.folder / "db.sock").chmod(0o666)
    images = folder / "glance"
    images.mkdir()
    glance = FakeGlance(images)
    with compute_host(
        session_engine, ovs, glance, state_folder, folder / "instances", new_instance_uuid
    ) as host:
        for path in (images, images / "downloads", folder / "instances"):
            os.chown(path, NOVA, NOVA)
        with proxy_of(session_engine, folder / "proxy") as url:
            yield Proxied(host, glance, url)
    state_folder.chmod(0o700)


@contextmanager
def proxy_of(engine: OwnEngine, path: Path) -> Iterator[str]:
    """Run a proxy whose user reaches the engine, on a socket that nova-compute's user reaches.

    :yields: the URL of the proxy
    """
    engine_socket = engine.url.removeprefix("unix://")
    os.chown(engine_socket, 0, GROUP)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        os.chown(path, 0, NOVA)
        path.chmod(0o660)
        listener.listen(64)
        command = [sys.executable, "-c", _PROXY, str(listener.fileno()), str(PROXY), str(GROUP)]
        proxy = subprocess.Popen(
            [*command, "--engine-socket", engine_socket],
            pass_fds=[listener.fileno()],
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        )
        try:
            yield f"unix://{path}"
        finally:
            proxy.terminate()
            proxy.wait()
            os.chown(engine_socket, 0, 0)


def become_nova() -> None:
    """Start the privileged processes, and become nova-compute's user."""
    for context in (*vars(privsep).values(), vif_plug_ovs.privsep.vif_plug):
        if isinstance(context, priv_context.PrivContext):
            context.start(priv_context.Method.FORK)
    os.setgroups([])
    os.setgid(NOVA)
    os.setuid(NOVA)


def life(
    result: Connection,
    server: Server,
    other: Server,
    url: str,
    engine_url: str,
    switch: str,
    instances: Path,
    glance: FakeGlance,
) -> None:
    """Run the operations; the parent looks at the server when it runs."""
    conf.CONF([], project="nova", default_config_files=[])
    use_switch(switch)
    store.glance.API = lambda: glance
    become_nova()
    with socket.socket(socket.AF_UNIX) as direct, pytest.raises(PermissionError):
        direct.connect(engine_url.removeprefix("unix://"))
    with servers.configured(url, instances):
        nova = Nova(glance)
        nova.start([])
        server = nova.spawn(server)
        result.send(server)
        assert result.recv() == "marked"
        nova.periodic()
        show_console(url, server)
        server = nova.detach(nova.attach(server, 3), 3)
        nova.driver.pause(server.instance())
        nova.driver.unpause(server.instance())
        nova.reboot(server, "SOFT")
        nova.power_off(server)
        assert nova.state(server) == power_state.SHUTDOWN
        nova.snapshot(server, SNAPSHOT)
        nova.power_on(server)
        server = nova.confirm_resize(nova.resize(server, "large"))
        rescued = nova.rescue(server)
        result.send(rescued)
        assert result.recv() == "seen"
        server = nova.unrescue(rescued)
        result.send(server)
        assert result.recv() == "seen"
        nova.destroy(server)
        # The snapshot is loaded into the engine, and sent from it as in a move.
        nova.image = glance.meta(SNAPSHOT)
        other = nova.spawn(other)
        engine = Engine(url, timeout=30, load_timeout=60)
        loaded = engine.inspect_container(f"nova-{other.uuid}").image_id
        assert sum(map(len, engine.save_image(loaded))) > 1_000_000
        nova.destroy(other)
        for name in engine.list_images(f"novadocker/{SNAPSHOT}"):
            engine.remove_image(name)
        nova.stop()
    result.send("done")
    os._exit(0)


def show_console(url: str, server: Server) -> None:
    """Open a shell on a terminal in a server, and use it."""
    engine = Engine(url, timeout=30, load_timeout=60)
    terminal = engine.open_terminal(f"nova-{server.uuid}", ["/bin/sh"])
    with terminal.connection as connection:
        connection.settimeout(30)
        connection.sendall(b"echo $((6 * 7))\n")
        shown = terminal.early
        while b"42" not in shown:
            shown += connection.recv(4096)


def test_a_server_s_life(proxied: Proxied) -> None:
    host = proxied.host
    server, other = (host.new_server(ports=(1, 2)) for _ in range(2))
    ours, theirs = processes.Pipe()
    child = processes.Process(
        target=life,
        args=(
            theirs,
            server,
            replace(other, ports=()),
            proxied.url,
            host.engine.url,
            host.switch.connection,
            host.instances,
            proxied.glance,
        ),
    )
    child.start()
    theirs.close()
    try:
        for answer in ("marked", "seen", "seen", ""):
            assert ours.poll(_SECONDS), "nova-compute hangs"
            server = ours.recv()
            if answer == "marked":
                host.survey.mark(server)
            elif answer:
                host.survey.check_running(server)
            if answer:
                ours.send(answer)
        assert server == "done"
        child.join(_SECONDS)
        host.survey.check_nothing_else([])
    finally:
        child.kill()
        child.join()


def run_docker(url: str, *words: str) -> tuple[int, str]:
    """Run the engine's own client as nova-compute's user."""
    done = subprocess.run(
        ["docker", "--host", url, *words],
        user=NOVA,
        group=NOVA,
        extra_groups=[],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--volume", "/:/host", "--privileged", "IMAGE", "true"),
        ("run", "--rm", "IMAGE", "true"),
        ("create", "--name", "nova-11111111-2222-4333-8444-555555555555", "IMAGE"),
        ("exec", "--privileged", "other", "true"),
        ("rm", "--force", "other"),
        ("ps", "--all"),
        ("cp", "other:/etc/passwd", "-"),
        ("tag", "IMAGE", "nginx:latest"),
        ("volume", "create", "--opt", "type=none", "--opt", "o=bind", "--opt", "device=/"),
        ("system", "prune", "--force"),
        ("plugin", "install", "--grant-all-permissions", "registry.example/x"),
    ],
)
def test_the_engine_s_client_gets_nothing(proxied: Proxied, words: tuple[str, ...]) -> None:
    client = proxied.host.client
    client.create_container(servers.IMAGE_NAME, name="other")
    before = {row["Id"] for row in client.containers(all=True)}
    named = [servers.IMAGE_NAME if word == "IMAGE" else word for word in words]
    status, error = run_docker(proxied.url, *named)
    assert status != 0
    assert "novadocker-engine-proxy refuses the request" in error
    assert {row["Id"] for row in client.containers(all=True)} == before
    status, error = run_docker(proxied.host.engine.url, "ps")
    assert status != 0
    assert "permission denied" in error
