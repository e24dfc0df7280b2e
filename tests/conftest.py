# SPDX-License-Identifier: Apache-2.0
"""Fixtures that the unit and the engine tests share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.fake_glance import FakeGlance


@pytest.fixture
def fake_glance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGlance:
    """An image service that stands in Glance's place."""
    # the cloud tests, which read this file too, need none of it
    from novadocker.virt.docker import images
    from tests.fake_glance import FakeGlance

    (tmp_path / "glance").mkdir()
    found = FakeGlance(tmp_path / "glance")
    monkeypatch.setattr(images.glance, "API", lambda: found)
    return found
