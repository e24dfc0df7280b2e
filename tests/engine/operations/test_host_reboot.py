# SPDX-License-Identifier: Apache-2.0
"""The host reboots: no process, no network device and no file in /run remains."""

from dataclasses import replace
from pathlib import Path

import pytest
from nova import conf
from nova.compute import power_state

from tests.engine.hosts import ComputeHost

# The test stops the last server before the reboot.
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
    compute_host: ComputeHost, state_folder: Path, resumed: bool
) -> None:
    survey, nova = compute_host.survey, compute_host.start_nova()
    made = [nova.spawn(compute_host.new_server(*each)) for each in _MADE]
    for server in made:
        survey.mark(server)
    ran, stopped = made[:-1], made[-1]
    nova.power_off(stopped)
    nova.stop()
    compute_host.lose_power(state_folder)
    compute_host.return_power()
    assert {survey.status(server) for server in made} == {"exited"}

    conf.CONF.set_override("resume_guests_state_on_host_boot", resumed)
    nova = compute_host.start_nova(
        [
            *(replace(server, power_state=power_state.RUNNING) for server in ran),
            replace(stopped, power_state=power_state.SHUTDOWN),
        ]
    )
    conf.CONF.clear_override("resume_guests_state_on_host_boot")
    for server in ran:
        if not resumed:
            # Nova's periodic task turns this state into SHUTOFF.
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
