# SPDX-License-Identifier: Apache-2.0
"""``disk_info``: the description of a move that Nova passes from source to destination.

The source returns it from ``migrate_disk_and_power_off``; Nova passes it to ``finish_migration`` on
the destination. It is a JSON object with a version.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from novadocker import exception, naming
from novadocker.privsep import arguments
from novadocker.virt.docker.migration import protocol

# The privileged functions accept 1000 directories of a move.
_MOST_VOLUMES = 900

SAME_HOST = json.dumps({"version": protocol.VERSION, "same_host": True})
"""The text of a resize on the instance's own host."""


@dataclass(frozen=True)
class Move:
    """A move of an instance to another host.

    :ivar token: names the staged data
    :ivar image_id: the engine's id of the image that the data belongs on
    :ivar volumes: paths in the container, in the order of the staged directories after the first
    :ivar drive: whether the last staged directory is a config drive
    """

    token: str
    image_id: str
    volumes: Sequence[str]
    drive: bool

    def to_text(self) -> str:
        """Return the text for ``read_move``."""
        return json.dumps({**asdict(self), "version": protocol.VERSION, "same_host": False})


def read_move(text: str) -> Move | None:
    """Return the move that a text describes; None if the instance stays on its host.

    :raises ResizeRefused: the text is damaged, or has another version of the protocol of moves
    """
    try:
        found = json.loads(text)
        if found["same_host"]:
            return None
        if found["version"] == protocol.VERSION:
            return _parse(found)
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise exception.ResizeRefused(
            reason="The disk_info from the source host is damaged"
        ) from error
    raise exception.ResizeRefused(
        reason="The disk_info has another version of the protocol of moves than this host"
    )


def _parse(found: object) -> Move:
    names = [field.name for field in fields(Move)]
    values: dict[str, Any] = dict(arguments.fields([*names, "version", "same_host"], found))
    volumes = [_text(path) for path in arguments.items(values["volumes"])]
    if len(volumes) > _MOST_VOLUMES:
        raise ValueError(f"there are more than {_MOST_VOLUMES} volumes")
    return Move(
        arguments.text(naming.TOKEN, values["token"]),
        _text(values["image_id"]),
        volumes,
        arguments.flag(values["drive"]),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text")
    return value
