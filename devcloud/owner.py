# SPDX-License-Identifier: Apache-2.0
"""The owner of the cloud's network namespace: one cloud at a time. Standard library only."""

import dataclasses
from pathlib import Path

from devcloud import supervise
from devcloud.settings import Settings
from devcloud.steps import StepFailed

OWNER = Path("/run/novadocker-devcloud")
"""Contains the path of the running cloud's state directory."""


def require_own(settings: Settings) -> None:
    """Check that no cloud of another state directory is running.

    :raises StepFailed: one is running, and its processes must not be taken for this one's
        leftovers.
    """
    if not OWNER.exists():
        return
    folder = Path(OWNER.read_text())
    other = dataclasses.replace(settings, folder=folder)
    if folder != settings.folder and supervise.is_alive(other):
        raise StepFailed(
            f"The cloud in {folder} is running on this machine",
            f"stop it first: DEVCLOUD_DIR={folder} make down",
        )


def claim(settings: Settings) -> None:
    """Record that the cloud of this state directory is running."""
    OWNER.write_text(str(settings.folder))


def release() -> None:
    """Delete the record of the running cloud. Idempotent."""
    OWNER.unlink(missing_ok=True)
