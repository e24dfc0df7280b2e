# SPDX-License-Identifier: Apache-2.0
"""Reasons why a server can't be saved, before CRIU is asked."""

from dataclasses import replace
from typing import Any

import pytest

from novadocker.virt.docker.checkpoint.preflight import Facts, refusal

PLAIN = Facts("running")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"asked": {"docker:nesting": "false", "docker:suspend": "disk"}}, ""),
        ({"status": "paused"}, "its container is paused"),
        ({"rescued": True}, "it is rescued"),
        ({"mapped": True}, "it has a user namespace"),
        ({"volumes": 1}, "volumes"),
        ({"drive_device": True}, "config drive"),
        ({"asked": {"docker:nesting": "true"}}, "docker:nesting"),
        ({"asked": {"docker:nesting": "host"}}, "docker:nesting"),
        ({"asked": {"docker:devices": "/dev/fuse"}}, "docker:devices"),
    ],
)
def test_refusal(changes: dict[str, Any], reason: str) -> None:
    found = refusal(replace(PLAIN, **changes))
    assert reason in found
    assert bool(found) is bool(reason)
