# SPDX-License-Identifier: Apache-2.0
"""Horizon's virtual environment and static files."""

import shutil
from pathlib import Path

from devcloud.install import ensure_environment, install_packages
from devcloud.settings import API_ADDRESS, DASHBOARD_PORT, Settings
from devcloud.steps import run_command, step

FILES = Path(__file__).resolve().parent / "horizon"

URL = f"http://{API_ADDRESS}:{DASHBOARD_PORT}/"


def prepare(settings: Settings) -> None:
    """Install Horizon and collect its static files. Horizon's configuration must exist.

    :raises StepFailed: a package cannot be installed, or Horizon cannot be loaded.
    """
    venv = settings.dashboard_folder / "venv"
    ensure_environment(settings, venv, [FILES / "requirements.txt"], FILES / "constraints.txt")
    made_for = (venv / ".devcloud-stamp").read_text()
    static = settings.dashboard_folder / "static"
    collected = static / ".devcloud-stamp"
    if collected.exists() and collected.read_text() == made_for:
        return
    shutil.rmtree(static, ignore_errors=True)
    with step("static files of the dashboard"):
        run_command(
            [venv / "bin" / "django-admin", "collectstatic", "--no-input"],
            log=settings.log / "horizon-collectstatic.log",
            advice="fix the error in the log, then: python3 -m devcloud up",
            environment={
                "PATH": f"{venv}/bin:/usr/bin:/bin",
                "PYTHONPATH": str(settings.etc / "horizon"),
                "DJANGO_SETTINGS_MODULE": "openstack_dashboard.settings",
                "LANG": "C.UTF-8",
            },
        )
    collected.write_text(made_for)


def install_browser(settings: Settings) -> None:
    """Install the Debian packages for the browser tests.

    :raises StepFailed: a package cannot be installed.
    """
    install_packages(settings, FILES / "packages.txt")
