# SPDX-License-Identifier: Apache-2.0
"""What is known of a server before CRIU is asked: the reasons why it can't be saved; pure.

CRIU itself refuses much more when it looks at the processes, and leaves them as they are. Here is
what it would not notice, or could not restore.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from novadocker import extra_specs


@dataclass(frozen=True)
class Facts:
    """What matters of a server.

    :ivar status: the engine's status of its container
    :ivar rescued: True if the container is the one that rescues the server
    :ivar mapped: True if the server has a user namespace
    :ivar volumes: number of its volumes
    :ivar drive_device: True if its config drive is a block device
    :ivar asked: its extra specs of ``docker:``
    """

    status: str
    rescued: bool = False
    mapped: bool = False
    volumes: int = 0
    drive_device: bool = False
    asked: Mapping[str, str] | None = None


def refusal(facts: Facts) -> str:
    """Return why a server can't be saved; empty if nothing is known against it."""
    asked = facts.asked or {}
    nesting = extra_specs.NESTING
    nests = nesting.parse(asked.get(nesting.name, "false")) != extra_specs.Nesting.NO
    reasons = {
        f"its container is {facts.status}": facts.status != "running",
        "it is rescued": facts.rescued,
        "it has a user namespace": facts.mapped,
        "it has volumes, whose devices may have other numbers later": facts.volumes > 0,
        "its config drive is a device, which may have another number later": facts.drive_device,
        f"it may run containers ({nesting.name})": nests,
        f"it has devices of the host ({extra_specs.DEVICES.name})": (
            extra_specs.DEVICES.name in asked
        ),
    }
    return next((reason for reason, applies in reasons.items() if applies), "")
