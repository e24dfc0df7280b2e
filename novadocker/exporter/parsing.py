# SPDX-License-Identifier: Apache-2.0
"""Parsing the kernel's counters. Pure.

Every function accepts None for a file that does not exist, and leaves out values that it can't
parse, so that a kernel without one counter still gives the others. A line ends at a line feed
alone: a tenant can choose names that contain other characters at which ``splitlines`` cuts.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from novadocker import naming

# Only devices with the driver's names are read, and a limited number of them, because a tenant may
# create any number of devices.
_MOST_PORTS = 64
# "Unlimited" is the largest long less a page (Documentation/admin-guide/cgroup-v1/memory.rst).
_UNLIMITED = 1 << 62
# The kernel's counters have 64 bits.
_MOST_DIGITS = 20
_HEXADECIMAL = re.compile(r"[0-9a-f]{1,16}")


@dataclass(frozen=True)
class DiskCounters:
    """Counters of an instance's I/O on one disk, or its limits per second; None if unknown."""

    read_bytes: int | None
    written_bytes: int | None
    reads: int | None
    writes: int | None


@dataclass(frozen=True)
class PortCounters:
    """Counters of a network device, as seen from inside the instance."""

    received_bytes: int
    received_packets: int
    receive_errors: int
    receive_drops: int
    sent_bytes: int
    sent_packets: int
    send_errors: int
    send_drops: int


def number(text: str | None) -> int | None:
    """Return the number of a file that has only one."""
    word = (text or "").strip()
    return int(word) if _is_number(word) else None


def limit(text: str | None) -> int | None:
    """Return a limit; None for unlimited."""
    found = number(text)
    return None if found is None or found >= _UNLIMITED else found


def flat(text: str | None) -> dict[str, int]:
    """Return the numbers of a file with a name and a number on each line."""
    lines = (line.split() for line in _lines(text))
    return {words[0]: int(words[1]) for words in lines if len(words) == 2 and _is_number(words[1])}


def chosen(text: str | None, names: Iterable[str]) -> dict[str, int]:
    """Return only these numbers of a file like that of ``flat``; faster for many lines."""
    lines = f"\n{text or ''}"
    found = {}
    for name in names:
        _, there, rest = lines.partition(f"\n{name} ")
        word = rest.partition("\n")[0]
        if there and _is_number(word):
            found[name] = int(word)
    return found


def cores_version_1(quota: str | None, period: str | None) -> float | None:
    """Return the CPUs that ``cpu.cfs_quota_us`` allows; None for unlimited."""
    return _cores(number(quota), number(period))


def cores_version_2(maximum: str | None) -> float | None:
    """Return the CPUs that ``cpu.max`` allows; None for unlimited."""
    quota, _, period = (maximum or "").strip().partition(" ")
    return _cores(number(quota), number(period))


def disks_version_1(bytes_text: str | None, requests_text: str | None) -> dict[str, DiskCounters]:
    """Return the counters of ``blkio.throttle.io_service_bytes`` and ``io_serviced``, by device."""
    sizes, counts = _blkio(bytes_text), _blkio(requests_text)
    return {
        device: DiskCounters(
            sizes.get((device, "Read")),
            sizes.get((device, "Write")),
            counts.get((device, "Read")),
            counts.get((device, "Write")),
        )
        for device in dict.fromkeys(device for device, _ in sizes)
    }


def disks_version_2(text: str | None) -> dict[str, DiskCounters]:
    """Return the counters of ``io.stat``, by device number such as ``254:0``."""
    return _by_device(text, ("rbytes", "wbytes", "rios", "wios"))


def disk_limits_version_1(files: Iterable[str | None]) -> dict[str, DiskCounters]:
    """Return the I/O limits per second of an instance for each disk.

    :param files: ``blkio.throttle.*_device`` for ``read_bps``, ``write_bps``, ``read_iops`` and
        ``write_iops``
    """
    limits = [flat(text) for text in files]
    devices = dict.fromkeys(device for found in limits for device in found)
    return {device: DiskCounters(*(found.get(device) for found in limits)) for device in devices}


def disk_limits_version_2(text: str | None) -> dict[str, DiskCounters]:
    """Return the limits of ``io.max`` by device number; None for ``max``, which is unlimited."""
    return _by_device(text, ("rbps", "wbps", "riops", "wiops"))


def ports(text: str | None) -> dict[str, PortCounters]:
    """Return the devices of ``/proc/PID/net/dev`` (proc(5)) that have a port's name."""
    found: dict[str, PortCounters] = {}
    # A tenant can rename devices. The kernel refuses white space in a name, but not all characters
    # that splitlines() and strip() treat as such. An alias contains a colon.
    for line in _lines(text):
        name, colon, values = line.rpartition(":")
        words = values.split()
        if (
            colon
            and len(words) >= 12
            and len(found) < _MOST_PORTS
            and naming.GUEST_DEVICE.fullmatch(name.strip(" "))
            and all(map(_is_number, words))
        ):
            received, sent = words[0:4], words[8:12]
            found[name.strip(" ")] = PortCounters(*map(int, received + sent))
    return found


def tracked_connections(text: str | None) -> int | None:
    """Return the entries of ``net/stat/nf_conntrack``; the line of each CPU has their total."""
    first = (text or "").split("\n", 2)[:2]
    return max(_tracking_column("\n".join(first), "entries"), default=None)


def dropped_connections(text: str | None) -> int | None:
    """Return the packets dropped because the table was full, summed over all CPUs."""
    each = _tracking_column(text, "drop")
    return sum(each) if each else None


def stalled_seconds(text: str | None) -> dict[str, float]:
    """Return the stall times of a ``*.pressure`` file in seconds, by ``some`` and ``full``."""
    found = {}
    for kind, *words in filter(None, (line.split() for line in _lines(text))):
        values = dict(word.split("=", 1) for word in words if "=" in word)
        if _is_number(values.get("total", "")):
            found[kind] = int(values["total"]) / 1e6
    return found


def memory_info(text: str | None) -> dict[str, int]:
    """Return the bytes of ``/proc/meminfo`` by name."""
    found = {}
    for line in _lines(text):
        name, _, value = line.partition(":")
        words = value.split()
        if words[1:] == ["kB"] and _is_number(words[0]):
            found[name] = int(words[0]) * 1024
    return found


def threads(text: str | None) -> int | None:
    """Return the number of threads in ``/proc/loadavg``; each uses an id below pid_max."""
    words = (text or "").split()
    return number(words[3].partition("/")[2]) if len(words) > 3 else None


def open_files(text: str | None) -> tuple[int, int] | None:
    """Return the open files and their limit of ``/proc/sys/fs/file-nr``."""
    words = (text or "").split()
    if len(words) != 3 or not all(map(_is_number, words)):
        return None
    return int(words[0]), int(words[2])


def user_keys(text: str | None) -> tuple[int, int] | None:
    """Return keys and their limit of ``/proc/key-users`` of the user who is nearest to the limit.

    The limit of root is another one, and root creates the keyrings of most containers.
    """
    found = []
    for line in _lines(text):
        words = line.split()
        used, slash, most = words[3].partition("/") if len(words) == 5 else ("", "", "")
        if slash and _is_number(used) and _is_number(most) and int(most):
            found.append((int(used), int(most)))
    return max(found, key=lambda pair: pair[0] / pair[1], default=None)


def working_set(usage: int | None, statistics: Mapping[str, int]) -> int | None:
    """Return usage - inactive_file, at least 0; names in ``statistics`` have no ``total_``."""
    if usage is None or "inactive_file" not in statistics:
        return None
    return max(0, usage - statistics["inactive_file"])


def unreclaimable(usage: int | None, statistics: Mapping[str, int]) -> int | None:
    """Return usage - inactive_file - slab_reclaimable; None on cgroup v1, which lacks the slab."""
    found = working_set(usage, statistics)
    if found is None or "slab_reclaimable" not in statistics:
        return None
    return max(0, found - statistics["slab_reclaimable"])


def _cores(quota: int | None, period: int | None) -> float | None:
    return quota / period if quota and period else None


def _by_device(text: str | None, names: tuple[str, str, str, str]) -> dict[str, DiskCounters]:
    found = {}
    for device, *words in filter(None, (line.split() for line in _lines(text))):
        pairs = (word.partition("=") for word in words)
        values = {name: int(value) for name, _, value in pairs if _is_number(value)}
        if not values.keys().isdisjoint(names):
            found[device] = DiskCounters(*map(values.get, names))
    return found


def _blkio(text: str | None) -> dict[tuple[str, str], int]:
    lines = (line.split() for line in _lines(text))
    return {
        (words[0], words[1]): int(words[2])
        for words in lines
        if len(words) == 3 and _is_number(words[2])
    }


def _tracking_column(text: str | None, column: str) -> list[int]:
    lines = [line.split() for line in _lines(text)]
    if not lines or column not in lines[0]:
        return []
    place = lines[0].index(column)
    words = (line[place] for line in lines[1:] if len(line) > place)
    return [int(word, 16) for word in words if _HEXADECIMAL.fullmatch(word)]


def _lines(text: str | None) -> list[str]:
    return (text or "").split("\n")


def _is_number(word: str) -> bool:
    return len(word) <= _MOST_DIGITS and word.isascii() and word.isdigit()
