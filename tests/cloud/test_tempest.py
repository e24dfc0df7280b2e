# SPDX-License-Identifier: Apache-2.0
"""Some of OpenStack's own tests; ``make tempest`` runs all of them."""

import pytest

from devcloud.settings import Settings
from devcloud.tempest import smoke
from tests.cloud.servers import Opened

SECONDS = 1200


@pytest.mark.timeout(SECONDS)
def test_tempest_smoke(cloud: Settings, opened: Opened):
    """A skipped test checks nothing, so it counts as a failure."""
    with opened(*(host.name for host in cloud.hosts)):
        found = smoke.run(cloud)
    bad = {name: result for name, result in found.items() if result.status != "passed"}
    assert bad == {}
    assert sorted(found) == smoke.names()
