# SPDX-License-Identifier: Apache-2.0
"""The users and groups of containers if the engine remaps them (``userns-remap``)."""

import re
from pathlib import Path

from novadocker import exception
from novadocker.linux.namespaces import IdMaps
from novadocker.virt.docker.model import EngineInfo

_DIRECTORY = Path("/etc")


def read_id_maps(info: EngineInfo, directory: Path = _DIRECTORY) -> IdMaps | None:
    """Return the users and groups of the engine's containers; None if they are the host's.

    The engine names its data root after the first user id and the first group id. It uses all
    ranges of its configured user in subuid(5) and subgid(5).

    :raises InvalidConfiguration: the files lack the ranges that the engine uses
    """
    if not info.user_namespaces:
        return None
    found = re.search(r"/([0-9]+)\.([0-9]+)$", info.data_root)
    if not found:
        raise exception.InvalidConfiguration(
            reason=f"the engine remaps users, but its data root {info.data_root} names no ids"
        )
    return IdMaps(
        users=_ranges(directory / "subuid", int(found[1])),
        groups=_ranges(directory / "subgid", int(found[2])),
    )


def _ranges(path: Path, first: int) -> tuple[tuple[int, int, int], ...]:
    """Return the ranges of the user whose lowest range begins with ``first``."""
    owned: dict[str, list[tuple[int, int]]] = {}
    for line in path.read_text().split("\n") if path.exists() else ():
        name, _, numbers = line.partition(":")
        if re.fullmatch(r"[0-9]+:[0-9]+", numbers):
            start, _, count = numbers.partition(":")
            owned.setdefault(name, []).append((int(start), int(count)))
    for ranges in owned.values():
        if min(ranges)[0] == first:
            return _numbered(sorted(ranges))
    raise exception.InvalidConfiguration(
        reason=f"the engine's containers begin with id {first}, which {path} lacks"
    )


def _numbered(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int, int], ...]:
    found, inside = [], 0
    for outside, count in ranges:
        found.append((inside, outside, count))
        inside += count
    return tuple(found)
