# SPDX-License-Identifier: Apache-2.0
"""A server moves to another cell, then is reverted or confirmed."""

import os

from nova import objects

from tests.engine.engines import OwnEngine
from tests.engine.hosts import HostOf
from tests.engine.servers import HOST


def test_what_left_for_another_cell(session_engine: OwnEngine, host_of: HostOf) -> None:
    away = objects.Migration(source_compute=HOST, dest_compute="other", cross_cell_move=True)
    with host_of(session_engine) as host:
        nova, survey = host.start_nova(), host.survey
        server = nova.spawn(host.new_server("capped", (1,)))
        survey.mark(server)
        asked = (nova.context, server.instance(), server.network_info)
        for _ in range(2):
            nova.driver.destroy(*asked, destroy_disks=False)
        assert nova.driver.list_instance_uuids() == []
        (left,) = host.client.containers(all=True, filters={"name": server.name})
        assert left["State"] == "exited"
        assert server.name not in os.listdir("/run/netns")
        nova.driver.finish_revert_migration(*asked, away, power_on=True)
        survey.check_running(server)
        nova.driver.destroy(*asked, destroy_disks=False)
        # The move is confirmed, so no revert can use the old container.
        for _ in range(2):
            nova.driver.cleanup(*asked, destroy_disks=True)
        survey.check_nothing_else([])
        nova.stop()
