# SPDX-License-Identifier: Apache-2.0
"""The OVN of the network's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.ovn import Ovn
from tests.engine.switch import Switch


@pytest.fixture(scope="module")
def ovn(ovs: Switch, state_folder: Path) -> Iterator[Ovn]:
    """Yield an OVN with one network."""
    found = Ovn(state_folder / "ovn", ovs)
    yield found
    found.stop()
