# SPDX-License-Identifier: Apache-2.0
"""The host goes down and comes back: no process is left, no device, nothing of ours in /run."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import docker
import pytest
from nova import conf
from nova.compute import power_state

from novadocker.virt.docker import kernel, netns
from tests.engine import daemons, servers
from tests.engine.conftest import busybox_archive
from tests.engine.engines import OwnEngine
from tests.engine.servers import Nova, Server
from tests.engine.survey import Survey, prepare_image
from tests.engine.switch import Switch
from tests.fake_glance import FakeGlance

# the last one is stopped before
_MADE = (
    ("capped", (1, 2)),
    ("large", (3,)),
    ("small", ()),
    ("small", (4,)),
    ("capped", (5,)),
    ("small", (6,)),
)


@pytest.mark.parametrize("resumed", [True, False])
def test_a_host_goes_down_and_comes_back(
    session_engine: OwnEngine,
    ovs: Switch,
    docker_client: docker.APIClient,
    fake_glance: FakeGlance,
    state_folder: Path,
    tmp_path: Path,
    new_instance_uuid: Callable[[], str],
    resumed: bool,
) -> None:
    prepare_image(docker_client, busybox_archive())
    instances = tmp_path / "instances"
    instances.mkdir()
    survey = Survey(docker_client, ovs, state_folder, instances)
    with servers.configured(session_engine.url, instances):
        nova = Nova(fake_glance)
        nova.start([])
        made = [nova.spawn(Server(new_instance_uuid(), *each)) for each in _MADE]
        for server in made:
            survey.mark(server)
        ran, stopped = made[:-1], made[-1]
        nova.power_off(stopped)
        nova.stop()
        _lose_power(session_engine, ovs, state_folder)
        _return(session_engine, ovs)
        assert {survey.status(server) for server in made} == {"exited"}

        conf.CONF.set_override("resume_guests_state_on_host_boot", resumed)
        nova = Nova(fake_glance)
        nova.start(
            [replace(server, power_state=power_state.RUNNING) for server in ran]
            + [replace(stopped, power_state=power_state.SHUTDOWN)]
        )
        conf.CONF.clear_override("resume_guests_state_on_host_boot")
        for server in ran:
            if not resumed:
                # what Nova's periodic task makes SHUTOFF
                assert nova.state(server) == power_state.SHUTDOWN
                survey.check_stopped(server)
                nova.power_on(server)
            assert nova.state(server) == power_state.RUNNING
            survey.check_running(server)
        survey.check_stopped(stopped)
        nova.power_on(stopped)
        survey.check_running(stopped)
        survey.check_nothing_else(made)

        for server in made:
            nova.destroy(server)
        survey.check_nothing_else([])
        nova.stop()
    docker_client.remove_image(servers.IMAGE_NAME, force=True)


def _lose_power(engine: OwnEngine, switch: Switch, state_folder: Path) -> None:
    """Leave only what lies on the disk: the engine's data, and the switch's database."""
    switch.stop_switching()
    engine.lose_power()
    for name in daemons.namespaces_of(state_folder):
        kernel.remove_name(f"{netns.NAMESPACES}/{name}")
    for record in daemons.records_of(state_folder):
        record.unlink()


def _return(engine: OwnEngine, switch: Switch) -> None:
    engine.start_all()
    switch.start_switching()
