# SPDX-License-Identifier: Apache-2.0
"""One cloud at a time on a machine: whose the network namespace is. Standard library only."""

import dataclasses
from pathlib import Path

from devcloud import supervise
from devcloud.settings import Settings
from devcloud.steps import StepFailed

OWNER = Path("/run/novadocker-devcloud")
"""Holds the state folder of the cloud that is up."""


def require_own(settings: Settings) -> None:
    """Check that no other state folder's cloud is up.

    :raises StepFailed: one is; its processes must not be taken for left-overs of this one's.
    """
    if not OWNER.exists():
        return
    folder = Path(OWNER.read_text())
    other = dataclasses.replace(settings, folder=folder)
    if folder != settings.folder and supervise.is_alive(other):
        raise StepFailed(
            f"the cloud in {folder} is up on this machine",
            f"stop it first: DEVCLOUD_DIR={folder} make down",
        )


def claim(settings: Settings) -> None:
    """Note that the cloud of this state folder is the one that is up."""
    OWNER.write_text(str(settings.folder))


def release() -> None:
    """Note that no cloud is up."""
    OWNER.unlink(missing_ok=True)
