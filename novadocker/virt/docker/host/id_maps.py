# SPDX-License-Identifier: Apache-2.0
"""The users of containers, where the engine gives them some of their own (``userns-remap``)."""

import re
from pathlib import Path

from novadocker import exception
from novadocker.linux.namespaces import IdMaps
from novadocker.virt.docker.model import EngineInfo

_FOLDER = Path("/etc")


def read_id_maps(info: EngineInfo, folder: Path = _FOLDER) -> IdMaps | None:
    """Return the users and groups of the engine's containers, None where they are the host's.

    The engine names its data root after the first of each, and takes all ranges that the user whom
    it was told of has in subuid(5) and subgid(5).

    :raises InvalidConfiguration: the files do not have what the engine uses
    """
    if not info.user_namespaces:
        return None
    found = re.search(r"/([0-9]+)\.([0-9]+)$", info.data_root)
    if not found:
        raise exception.InvalidConfiguration(
            reason=f"the engine remaps users, but its data root {info.data_root} does not say whose"
        )
    return IdMaps(
        users=_ranges(folder / "subuid", int(found[1])),
        groups=_ranges(folder / "subgid", int(found[2])),
    )


def _ranges(path: Path, first: int) -> tuple[tuple[int, int, int], ...]:
    """Return the ranges of the user whose lowest one begins with ``first``."""
    owned: dict[str, list[tuple[int, int]]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        name, _, numbers = line.partition(":")
        if re.fullmatch(r"[0-9]+:[0-9]+", numbers):
            start, _, count = numbers.partition(":")
            owned.setdefault(name, []).append((int(start), int(count)))
    for ranges in owned.values():
        if min(ranges)[0] == first:
            return _numbered(sorted(ranges))
    raise exception.InvalidConfiguration(
        reason=f"the engine's containers begin with id {first}, of which {path} says nothing"
    )


def _numbered(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int, int], ...]:
    found, inside = [], 0
    for outside, count in ranges:
        found.append((inside, outside, count))
        inside += count
    return tuple(found)
