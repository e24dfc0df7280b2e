# SPDX-License-Identifier: Apache-2.0
"""``make demo``: boots a server and shows it from every side."""

from devcloud.settings import Settings


def demo(settings: Settings) -> None:
    """Bring the cloud up, boot a server and show it."""
    raise NotImplementedError(settings)
