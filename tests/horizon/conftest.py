# SPDX-License-Identifier: Apache-2.0
"""A browser at the dashboard of a cloud that is up, as the tenant ``demo``."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from openstack.connection import Connection
from playwright.sync_api import sync_playwright
from tenant import Dashboard

from devcloud.clients import connect
from devcloud.dashboard import URL
from devcloud.settings import Settings, load_secrets, load_settings

# Chromium without a screen, as root, on a machine without a way out
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
)


@pytest.fixture
def cloud() -> Settings:
    """The cloud; it has a dashboard."""
    return load_settings()


@pytest.fixture
def demo(cloud: Settings) -> Iterator[Connection]:
    """The tenant's connection, to look at what the dashboard did and to clean up."""
    with connect(cloud, "demo") as connection:
        yield connection


@pytest.fixture
def dashboard(cloud: Settings, tmp_path: Path) -> Iterator[Dashboard]:
    """The dashboard, logged in as a plain tenant."""
    wanted = os.environ.get("HORIZON_PICTURES")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=[*FLAGS])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        opened = Dashboard(page, URL, Path(wanted) if wanted else None)
        opened.log_in("demo", load_secrets(cloud)["demo"])
        yield opened
        page.screenshot(path=tmp_path / "last.png")
        browser.close()
