# SPDX-License-Identifier: Apache-2.0
"""Fixtures and options that levels of tests share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.fake_glance import FakeGlance


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what makes quick tests long ones."""
    parser.addoption("--steps", type=int, default=1000, help="of test_soak.py")
    parser.addoption("--seed", type=int, default=1, help="of test_soak.py")
    parser.addoption("--generations", type=int, default=5, help="of test_snapshots.py")
    parser.addoption("--outage", type=float, default=15, help="seconds, of test_outages.py")
    parser.addoption("--every-point", action="store_true", help="kill at, in test_crashes.py")
    parser.addoption("--whole-guest", action="store_true", help="all of the guest's tests")


@pytest.fixture
def fake_glance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGlance:
    """An image service that stands in Glance's place."""
    # the cloud tests, which read this file too, need none of it
    from novadocker.virt.docker.images import store
    from tests.fake_glance import FakeGlance

    (tmp_path / "glance").mkdir()
    found = FakeGlance(tmp_path / "glance")
    monkeypatch.setattr(store.glance, "API", lambda: found)
    return found
