# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests that install packages."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.install import system


@pytest.fixture(scope="session")
def held() -> Iterator[Path]:
    """Yield the directory of the systems, locked until the end of the tests."""
    with system.folder() as found:
        yield found
