# SPDX-License-Identifier: Apache-2.0
"""An engine is killed without live-restore, hangs, or has no room left on its disk."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import docker
import pytest
from nova import exception as nova_exception
from nova.compute import power_state

from novadocker import exception
from tests.engine import servers
from tests.engine.conftest import busybox_archive
from tests.engine.engines import OwnEngine, own_engine
from tests.engine.servers import Nova, Server
from tests.engine.survey import Survey, prepare_image
from tests.engine.switch import Switch
from tests.fake_glance import FakeGlance
from tests.suspending import suspend

_SECONDS = 60


def test_killed_without_live_restore(
    ovs: Switch,
    fake_glance: FakeGlance,
    state_folder: Path,
    tmp_path: Path,
    new_instance_uuid: Callable[[], str],
) -> None:
    instances = tmp_path / "instances"
    instances.mkdir()
    with own_engine(state_folder / "mortal", "overlay2", live_restore=False) as engine:
        client = docker.APIClient(base_url=engine.url, timeout=_SECONDS)
        prepare_image(client, busybox_archive())
        survey = Survey(client, ovs, state_folder, instances)
        with servers.configured(engine.url, instances):
            nova = Nova(fake_glance)
            nova.start([])
            server = nova.spawn(Server(new_instance_uuid(), "capped", (1,)))
            survey.mark(server)
            engine.kill()
            with pytest.raises(exception.EngineUnavailable):
                nova.state(server)
            engine.start()
            # the engine stops all containers of its former life
            client.wait(server.name, timeout=_SECONDS)
            assert nova.state(server) == power_state.SHUTDOWN
            nova.power_on(server)
            survey.check_running(server)
            survey.check_nothing_else([server])
            nova.destroy(server)
            survey.check_nothing_else([])
            nova.stop()
        client.close()


def test_hanging(
    session_engine: OwnEngine,
    ovs: Switch,
    docker_client: docker.APIClient,
    fake_glance: FakeGlance,
    state_folder: Path,
    tmp_path: Path,
    new_instance_uuid: Callable[[], str],
) -> None:
    prepare_image(docker_client, busybox_archive())
    instances = tmp_path / "instances"
    instances.mkdir()
    survey = Survey(docker_client, ovs, state_folder, instances)
    with servers.configured(session_engine.url, instances, api_timeout=2):
        nova = Nova(fake_glance)
        nova.start([])
        server = nova.spawn(Server(new_instance_uuid(), ports=(1,)))
        survey.mark(server)
        suspend(session_engine.pid)
        began = time.monotonic()
        try:
            # what the engine has been asked for it does later, so nothing that begins with a change
            for operation in (nova.state, nova.power_off, nova.reboot):
                with pytest.raises(exception.EngineUnavailable):
                    operation(server)
        finally:
            os.kill(session_engine.pid, signal.SIGCONT)
        assert time.monotonic() - began < _SECONDS
        assert nova.state(server) == power_state.RUNNING
        survey.check_running(server)
        nova.destroy(server)
        survey.check_nothing_else([])
        nova.stop()
    docker_client.remove_image(servers.IMAGE_NAME, force=True)


def test_a_full_disk(
    ovs: Switch,
    fake_glance: FakeGlance,
    state_folder: Path,
    tmp_path: Path,
    new_instance_uuid: Callable[[], str],
) -> None:
    instances = tmp_path / "instances"
    instances.mkdir()
    with own_engine(state_folder / "full", "overlay2", "ext4") as engine:
        client = docker.APIClient(base_url=engine.url, timeout=_SECONDS)
        prepare_image(client, busybox_archive())
        survey = Survey(client, ovs, state_folder, instances)
        with servers.configured(engine.url, instances):
            nova = Nova(fake_glance)
            nova.start([])
            server = nova.spawn(Server(new_instance_uuid(), ports=(1,)))
            survey.mark(server)
            ballast = engine.data_root.parent / "ballast"
            _fill(ballast)
            with pytest.raises((exception.EngineError, nova_exception.NovaException)) as caught:
                nova.spawn(Server(new_instance_uuid(), ports=(2,)))
            assert "no space left" in str(caught.value)
            survey.check_running(server)
            survey.check_nothing_else([server])
            ballast.unlink()
            after = nova.spawn(Server(new_instance_uuid(), ports=(3,)))
            survey.mark(after)
            survey.check_running(after)
            for each in (server, after):
                nova.destroy(each)
            survey.check_nothing_else([])
            nova.stop()
        client.close()


def _fill(file: Path) -> None:
    """Write to a file until its file system has no room, which dd tells by its exit code."""
    done = subprocess.run(["dd", "if=/dev/zero", f"of={file}", "bs=1M"], capture_output=True)
    assert b"No space left" in done.stderr
