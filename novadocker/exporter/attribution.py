# SPDX-License-Identifier: Apache-2.0
"""Attribution of lines of the kernel's log to containers.

The lines contain names of processes, control groups and files that a tenant chose. So a pattern is
exactly the kernel's form, and a name before a process id has the kernel's length: too short to
contain the form itself.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from novadocker.exporter.kernel_log import Record
from novadocker.linux.cgroup import container_of_path

# TASK_COMM_LEN less the terminating zero is 15 bytes, each of which may be escaped as \x41.
_NAME = r"(?:\\x[0-9a-f]{2}|[^\\]){0,15}"
_HEX = "[0-9a-f]{1,16}"
_OOM_BEGINS = re.compile(rf"{_NAME} invoked oom-killer: gfp_mask=.*")
# The name of the cpuset has no slash, so the first "_memcg=/" is the kernel's. The path after it
# may contain names that the tenant chose. If the limit is the parent group's, only the second path
# names the container.
_OOM_VICTIM = re.compile(
    r"oom-kill:constraint=.*?_memcg=(?P<group>/.*),task=(?P<name>.*),pid=(?P<pid>[0-9]+),uid=[0-9]+"
)
_OOM_KILLED = re.compile(
    r"(?:Memory cgroup out of memory|Out of memory): Killed process ([0-9]+) .*"
)
_OOM_MOST_LINES = 200
_OOM_MICROSECONDS = 1_000_000
_FORK_REJECTED = re.compile(r"cgroup: fork rejected by pids controller in (/.*)")
# The kernel appends the name of the mapped file (print_vma_addr), which may be like another fault.
# show_signal_msg in arch/x86/mm/fault.c
_SEGFAULT = re.compile(
    rf"{_NAME}\[([0-9]+)\]: segfault at {_HEX} ip {_HEX} sp {_HEX} error {_HEX}(?: .*)?"
)
# show_signal in arch/x86/kernel/traps.c
_TRAP = re.compile(
    rf"traps: {_NAME}\[([0-9]+)\] [A-Za-z0-9, ]+ ip:{_HEX} sp:{_HEX} error:{_HEX}(?: .*)?"
)
# drop_caches_sysctl_handler in fs/drop_caches.c, __set_oom_adj in fs/proc/base.c, and
# hugetlb_file_setup in fs/hugetlbfs/inode.c
_TASK = re.compile(
    rf"{_NAME} \(([0-9]+)\): (?:drop_caches: |/proc/[0-9]+/oom_adj is deprecated"
    r"|Using mlock ulimits for SHM_HUGETLB is ).*"
)
_TABLE_FULL = re.compile(r"nf_conntrack: (?:nf_conntrack: )?table full.*")


@dataclass(frozen=True)
class Victim:
    """The process of a container that the kernel killed because memory ran out."""

    container: str
    name: str
    pid: int


@dataclass(frozen=True)
class Found:
    """Lines about one container, with the victim if they report an out-of-memory kill."""

    container: str
    records: tuple[Record, ...]
    victim: Victim | None = None


def reports_full_table(record: Record) -> bool:
    """Return True if a line reports a full connection tracking table, of any network namespace."""
    return _match(_TABLE_FULL, record) is not None


def kills(record: Record) -> bool:
    """Return True if a line is the last one of the report of an out-of-memory kill."""
    return _match(_OOM_KILLED, record) is not None


def _match(form: re.Pattern[str], record: Record) -> re.Match[str] | None:
    # The rest of a line, in a record of its own, may begin with a name that a tenant chose.
    return None if record.continues else form.fullmatch(record.text)


class Attribution:
    """The assignment of lines to containers; not safe to share between threads.

    The report of an out-of-memory kill has a hundred lines, and only one near its end names the
    control group. The kernel writes one report at a time.

    :param container_of_process: returns the container of a process, None if it is in no container
    """

    def __init__(self, container_of_process: Callable[[int], str | None]) -> None:
        self._of_process = container_of_process
        self._report: list[Record] = []
        self._victim: Victim | None = None

    def take(self, record: Record) -> Found | None:
        """Add a line. Return the container and its lines if this line completes them."""
        if _match(_OOM_BEGINS, record):
            self._report, self._victim = [record], None
            return None
        if self._report:
            return self._take_of_report(record)
        container = self._of_line(record)
        return Found(container, (record,)) if container else None

    def _take_of_report(self, record: Record) -> Found | None:
        late = record.microseconds - self._report[0].microseconds > _OOM_MICROSECONDS
        if late or len(self._report) >= _OOM_MOST_LINES:
            self._report = []
            return self.take(record)
        self._report.append(record)
        if match := _match(_OOM_VICTIM, record):
            container = self._of_process(int(match["pid"])) or container_of_path(match["group"])
            if container:
                self._victim = Victim(container, match["name"], int(match["pid"]))
        if not kills(record):
            return None
        report, self._report = tuple(self._report), []
        return Found(self._victim.container, report, self._victim) if self._victim else None

    def _of_line(self, record: Record) -> str | None:
        if match := _match(_FORK_REJECTED, record):
            return container_of_path(match[1])
        for form in (_OOM_KILLED, _SEGFAULT, _TRAP, _TASK):
            if match := _match(form, record):
                return self._of_process(int(match[1]))
        return self._of_process(record.task) if record.task else None
