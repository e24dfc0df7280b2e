# SPDX-License-Identifier: Apache-2.0
"""A server whose container an operator deletes in the engine."""

import pytest
from nova.compute import power_state

from novadocker import exception
from tests.engine.engines import OwnEngine
from tests.engine.hosts import HostOf
from tests.waiting import until


def test_a_deleted_container(session_engine: OwnEngine, host_of: HostOf) -> None:
    with host_of(session_engine) as host:
        nova = host.start_nova()
        server = nova.spawn(host.new_server(ports=(1,)))
        host.client.remove_container(server.name, force=True, v=True)
        until(lambda: nova._known_state(server) == power_state.SHUTDOWN)
        with pytest.raises(exception.ContainerLost):
            nova.reboot(server)
        # As Nova's manager rebuilds a server:
        nova.power_off(server)
        nova.destroy(server)
        server = nova.spawn(server)
        assert nova.state(server) == power_state.RUNNING
        host.survey.mark(server)
        host.survey.check_nothing_else([server])
        nova.destroy(server)
        host.survey.check_nothing_else([])
        nova.stop()


def test_a_container_that_is_deleted_while_nova_compute_is_down(
    session_engine: OwnEngine, host_of: HostOf
) -> None:
    with host_of(session_engine) as host:
        nova = host.start_nova()
        server = nova.spawn(host.new_server(ports=(1,)))
        nova.stop()
        host.client.remove_container(server.name, force=True, v=True)
        nova = host.start_nova()
        # For a soft deletion, too, Nova powers the server off.
        until(lambda: nova._known_state(server) == power_state.SHUTDOWN)
        nova.power_off(server)
        nova.destroy(server)
        host.survey.check_nothing_else([])
        nova.stop()
