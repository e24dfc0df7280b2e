# SPDX-License-Identifier: Apache-2.0
"""The transport through a registry."""

import pytest

from novadocker import privsep
from novadocker.virt.docker.migration import protocol
from novadocker.virt.docker.migration.transports.registry import Fetch, Pull


@pytest.mark.parametrize("order", [Pull, Fetch])
def test_the_source_waits_for_a_download_as_long_as_the_destination(
    order: type[protocol.Order],
) -> None:
    assert privsep.transfer_pctxt.timeout < order.SECONDS
