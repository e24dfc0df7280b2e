# SPDX-License-Identifier: Apache-2.0
"""Fixtures and options that several levels of tests share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.fake_glance import FakeGlance


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that lengthen tests."""
    parser.addoption("--steps", type=int, default=700, help="steps of test_soak.py")
    parser.addoption("--seed", type=int, default=1, help="seed of test_soak.py")
    parser.addoption(
        "--generations", type=int, default=5, help="number of generations of test_snapshots.py"
    )
    parser.addoption(
        "--outage", type=float, default=15, help="seconds of an outage in test_outages.py"
    )
    parser.addoption(
        "--every-point", action="store_true", help="kill at every point in test_crashes.py"
    )
    parser.addoption(
        "--stock", action="store_true", help="build whole Debian systems for tests/engine/runtime"
    )
    parser.addoption(
        "--engine",
        choices=("trixie", "forky"),
        help="run tests/engine on the Docker Engine of a newer Debian release",
    )
    parser.addoption(
        "--containerd-store",
        action="store_true",
        help="let the engine of the option --engine keep its images in containerd's image store",
    )
    parser.addoption("--ports", type=int, default=12, help="ports of test_many_ports.py")
    parser.addoption("--whole-guest", action="store_true", help="run all tests in the guest")


@pytest.fixture
def fake_glance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGlance:
    """Return an image service in place of Glance."""
    # The cloud tests read this file too and must not import the driver.
    from novadocker.virt.docker.images import store
    from tests.fake_glance import FakeGlance

    (tmp_path / "glance").mkdir()
    found = FakeGlance(tmp_path / "glance")
    monkeypatch.setattr(store.glance, "API", lambda: found)
    return found
