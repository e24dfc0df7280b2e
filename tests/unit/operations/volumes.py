# SPDX-License-Identifier: Apache-2.0
"""Volumes as Nova passes them to drivers."""

import copy
from typing import Any

FIRST = "7e570000-0000-4000-8000-0000000000b1"
SECOND = "7e570000-0000-4000-8000-0000000000b2"


def connection(volume_id: str = FIRST, kind: str = "iscsi", **more: Any) -> dict[str, Any]:
    return {"driver_volume_type": kind, "data": {"target_lun": 1}, "serial": volume_id, **more}


class DriverMapping(dict[str, Any]):
    """A mapping as Nova passes it; ``saved`` has the connections that it wrote to the database."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(fields)
        self.saved: list[dict[str, Any]] = []

    def save(self) -> None:
        self.saved.append(copy.deepcopy(self["connection_info"]))


def block_devices(*connections: dict[str, Any]) -> dict[str, Any]:
    """Return the block devices of a server with these volumes at /dev/vdb and on."""
    return {
        "block_device_mapping": [
            DriverMapping(connection_info=found, mount_device=f"/dev/vd{letter}", boot_index=None)
            for found, letter in zip(connections, "bcdefgh", strict=False)
        ]
    }
