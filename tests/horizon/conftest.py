# SPDX-License-Identifier: Apache-2.0
"""Fixtures for a browser at the dashboard of a running cloud."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from openstack.connection import Connection
from playwright.sync_api import Page, sync_playwright
from tenant import Dashboard

from devcloud.clients import connect
from devcloud.dashboard import URL
from devcloud.settings import Settings, load_secrets, load_settings

# Chromium runs without a screen, as root, and on a machine without internet access.
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
    """Return the settings of the cloud, which has a dashboard."""
    return load_settings()


@pytest.fixture
def demo(cloud: Settings) -> Iterator[Connection]:
    """Yield the tenant's connection, for checks and clean-up."""
    with connect(cloud, "demo") as connection:
        yield connection


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    """Yield a browser's page; its last state is a screenshot in the test's directory."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=[*FLAGS])
        opened = browser.new_page(viewport={"width": 1440, "height": 860})
        yield opened
        opened.screenshot(path=tmp_path / "last.png")
        browser.close()


@pytest.fixture
def log_in(cloud: Settings, page: Page) -> Callable[[str], Dashboard]:
    """Return a function that opens the dashboard as ``demo`` or ``admin``."""
    wanted = os.environ.get("HORIZON_PICTURES")

    def call(user: str) -> Dashboard:
        opened = Dashboard(page, URL, Path(wanted) if wanted else None)
        opened.log_in(user, load_secrets(cloud)[user])
        return opened

    return call


@pytest.fixture
def dashboard(log_in: Callable[[str], Dashboard]) -> Dashboard:
    """Return the dashboard, logged in as a plain tenant."""
    return log_in("demo")
