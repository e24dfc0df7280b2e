# SPDX-License-Identifier: Apache-2.0
"""The cloud the tests talk to: brought up once, left running."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from openstack.connection import Connection

from devcloud.clients import connect
from devcloud.settings import CHECKOUT, Settings, load_settings

BRING_UP_SECONDS = 1500


@pytest.fixture(scope="session")
def cloud() -> Settings:
    """A cloud that is up; seconds when it was up before."""
    done = subprocess.run(
        [sys.executable, "-m", "devcloud", "up"],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BRING_UP_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"the cloud does not come up:\n{done.stdout}", pytrace=False)
    return load_settings()


@pytest.fixture(scope="session")
def admin(cloud: Settings) -> Iterator[Connection]:
    """The administrator's connection."""
    with connect(cloud, "admin") as connection:
        yield connection


@pytest.fixture(scope="session")
def demo(cloud: Settings) -> Iterator[Connection]:
    """The connection of a plain tenant: project ``demo``, role ``member``."""
    with connect(cloud, "demo") as connection:
        yield connection
