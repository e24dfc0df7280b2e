# SPDX-License-Identifier: Apache-2.0
"""The kernel log: read, sorted by server, and kept per server in files of bounded size."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novadocker.cmd import log as command
from novadocker.exporter import attribution, kernel_log, rings
from novadocker.exporter.kernel_log import KernelLog, Record
from novadocker.exporter.rings import Rings
from tests import fuzz

FIRST, SECOND = "ab" * 32, "cd" * 32
UUID = "11111111-2222-3333-4444-555555555555"
OTHER = "99999999-2222-3333-4444-555555555555"


# -- reading ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"6,339,5140900,-;NET: family 10\n", Record(339, 5140900, None, "NET: family 10")),
        (b"4,1,2,-,caller=T42;text\n SUBSYSTEM=net\n", Record(1, 2, 42, "text")),
        (b"4,1,2,-,caller=C1;a;b\n", Record(1, 2, None, "a;b")),
        (b"4,1,2,c;rest of a line\n", Record(1, 2, None, "rest of a line", continues=True)),
        (b"4,1,2,+,caller=T42;rest\n", Record(1, 2, 42, "rest", continues=True)),
        (b"12,1,2,-;systemd[1]: from a program\n", None),
        (b"nonsense", None),
        (b"6,1;short", None),
        (b"", None),
    ],
)
def test_records(content: bytes, expected: Record | None) -> None:
    assert kernel_log.parse(content) == expected


class Kernel:
    """A fake of /dev/kmsg: each read returns one record."""

    def __init__(self) -> None:
        self._own, self._read = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._read.setblocking(False)
        self.descriptor = os.dup(self._read.fileno())
        self.sequence = 0

    def say(self, text: str, level: int = 4) -> None:
        self._own.send(f"{level},{self.sequence},{self.sequence},-;{text}\n".encode())
        self.sequence += 1

    def close(self) -> None:
        self._own.close()
        self._read.close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    found = Kernel()
    yield found
    found.close()


def test_lines_that_were_overwritten_are_counted(kernel: Kernel) -> None:
    log = KernelLog(kernel.descriptor)
    kernel.sequence = 7
    kernel.say("first")
    kernel.say("of a program", level=12)
    kernel.say("second")
    assert [record.text for record in log.records()] == ["first", "second"]
    assert log.lost == 0
    kernel.sequence += 5
    kernel.say("third")
    assert [record.text for record in log.records()] == ["third"]
    assert log.lost == 5
    log.close()


def test_a_flood_is_passed_over(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    log = KernelLog(kernel.descriptor, most_per_second=3, clock=lambda: now[0])

    def wind(descriptor: int, offset: int, whence: int) -> int:
        assert (descriptor, whence) == (kernel.descriptor, os.SEEK_END)
        while True:
            try:
                os.read(descriptor, 8192)
            except BlockingIOError:
                return 0

    monkeypatch.setattr(os, "lseek", wind)
    for number in range(10):
        kernel.say(str(number))
    assert [record.text for record in log.records()] == ["0", "1", "2"]
    assert log.rest() == 1.0
    kernel.say("10")
    assert list(log.records()) == []
    now[0] += 1
    assert log.rest() == 0
    kernel.say("11")
    assert [record.text for record in log.records()] == ["11"]
    assert log.lost == 8
    log.close()


# -- sorting ------------------------------------------------------------------------------

REPORT = (
    "dd invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
    f"Memory cgroup stats for /docker/{FIRST}:",
    f"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset={FIRST},mems_allowed=0,"
    f"oom_memcg=/docker/{FIRST},task_memcg=/docker/{FIRST},task=dd,pid=4567,uid=0",
    "Memory cgroup out of memory: Killed process 4567 (dd) total-vm:133340kB, UID:0",
)


def sort(*lines: str, processes: dict[int, str] | None = None) -> list[attribution.Found]:
    sorter = attribution.Attribution((processes or {}).get)
    records = [Record(number, number, None, line) for number, line in enumerate(lines)]
    with fuzz.bounds():
        return [found for record in records if (found := sorter.take(record))]


def test_a_report_of_a_kill_is_whole() -> None:
    (found,) = sort("something else", *REPORT, "something else")
    assert found.container == FIRST
    assert tuple(record.text for record in found.records) == REPORT
    assert found.victim == attribution.Victim(FIRST, "dd", 4567)


@pytest.mark.parametrize(
    "line",
    [
        # The tenant's own group is in each of the two paths.
        f"oom_memcg=/docker/{FIRST}/a,task_memcg=/{SECOND}/b,task_memcg=/docker/{FIRST}/a,task=x",
        f"oom_memcg=/docker/{FIRST},task_memcg=/docker/{FIRST}/a,task_memcg=/{SECOND},task=x",
        # The process's name is the tenant's choice.
        f"oom_memcg=/docker/{FIRST},task_memcg=/docker/{FIRST},task=,pid=7,uid=0",
        # The limit is the parent group's.
        f"oom_memcg=/docker,task_memcg=/docker/{FIRST},task=x",
        f"task_memcg=/system.slice/docker-{FIRST}.scope,task=x",
    ],
)
def test_names_of_a_tenant_blame_nobody_else(line: str) -> None:
    start = "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,"
    lines = (REPORT[0], f"{start}{line},pid=4567,uid=0", REPORT[3])
    (found,) = sort(*lines, processes={7: SECOND})
    assert found.container == FIRST
    assert found.victim is not None
    assert found.victim.pid == 4567


def test_a_process_that_still_is_says_more_than_the_line() -> None:
    (found,) = sort(*REPORT, processes={4567: SECOND})
    assert found.container == SECOND


@pytest.mark.parametrize(
    ("line", "container"),
    [
        (f"cgroup: fork rejected by pids controller in /docker/{FIRST}", FIRST),
        (f"cgroup: fork rejected by pids controller in /docker/{FIRST}/x/{SECOND}", FIRST),
        ("sh[42]: segfault at 0 ip 0000 sp 0000 error 4 in sh", FIRST),
        ("traps: sh[42] general protection fault ip:0 sp:0 error:0", FIRST),
        ("traps: sh[42] trap int3 ip:0 sp:0 error:0", FIRST),
        ("sh (42): drop_caches: 3", FIRST),
        ("Memory cgroup out of memory: Killed process 42 (sh) total-vm:1kB", FIRST),
        # The process's name resembles the number of another server's process.
        ("x[43]: segfault[42]: segfault at 0 ip 0000 sp 0000 error 4", FIRST),
        ("x (43): (42): drop_caches: 3", FIRST),
        ("traps: [43] trap x[42] trap int3 ip:0 sp:0 error:0", FIRST),
        # So does the name of the mapped file.
        ("traps: a[42] trap int3 ip:0 sp:0 error:0 in [43] trap z[400000+1000]", FIRST),
        ("traps: [42] trap int3 ip:0 sp:0 error:0 in [43] trap z ip:0 sp:0 error:0[0+1]", FIRST),
        ("sh[42]: segfault at 0 ip 0 sp 0 error 4 in [43]: segfault at 0 ip 0 sp 0 error 4", FIRST),
        ("[42]: segfault at 0 ip 0 sp 0 error 4 in (43): drop_caches: 3[0+1]", FIRST),
        ("sh[42]: segfault at 0 ip 0 sp 0 error 4 likely on CPU 1 (core 1, socket 0)", FIRST),
        ("\\x0a" * 15 + "[42]: segfault at 0 ip 0 sp 0 error 4", FIRST),
        ("x" * 16 + "[43]: segfault at 0 ip 0 sp 0 error 4", None),
        ("sh[43]: segfault at 0 x", None),
        ("x (43): anything", None),
        ("x[43]", None),
        ("eth0: link up", None),
        (
            f"oom-kill:constraint=CONSTRAINT_NONE,task_memcg=/docker/{FIRST},task=x,pid=1,uid=0",
            None,
        ),
    ],
)
def test_single_lines(line: str, container: str | None) -> None:
    found = sort(line, processes={42: FIRST, 43: SECOND})
    assert [one.container for one in found] == ([container] if container else [])


@pytest.mark.parametrize(
    "text",
    [
        "[43]: segfault at 0 ip 0 sp 0 error 4",
        "traps: x[43] trap int3 ip:0 sp:0 error:0",
        "x (43): drop_caches: 3",
        "Memory cgroup out of memory: Killed process 43 (sh) total-vm:1kB",
        f"cgroup: fork rejected by pids controller in /docker/{SECOND}",
    ],
)
def test_the_rest_of_a_line_is_not_a_line(text: str) -> None:
    sorter = attribution.Attribution({43: SECOND}.get)
    assert sorter.take(Record(1, 1, None, text, continues=True)) is None
    assert sorter.take(Record(1, 1, None, text)) is not None
    sorter = attribution.Attribution({42: FIRST, 43: SECOND}.get)
    found = sorter.take(Record(1, 1, 42, text, continues=True))
    assert found is not None
    assert found.container == FIRST


def test_the_rest_of_a_line_begins_no_report() -> None:
    sorter = attribution.Attribution({42: FIRST}.get)
    for record in (
        Record(1, 1, None, f" in{REPORT[0]}", continues=True),
        Record(1, 1, None, "nf_conntrack: table full", continues=True),
    ):
        assert sorter.take(record) is None
        assert not attribution.reports_full_table(record)
    assert sorter.take(Record(2, 2, None, "sh (42): drop_caches: 3")) is not None


# Parts of the names that tenants choose, most of them parts of the kernel's forms.
PARTS = (
    *("[43]", "(43)", ": ", " ", "=", ",", "\n", "\\", "\x7f", "\udc80"),
    *("segfault at 0", " ip 0", " sp 0", " error 4", "traps: ", "trap ", " ip:0", " sp:0"),
    *(" error:0", "drop_caches: 3", " invoked oom-killer: gfp_mask=", "_memcg="),
    *(",task=x,pid=43,uid=0", f"/docker/{SECOND}", "Out of memory: Killed process 43 "),
    f"cgroup: fork rejected by pids controller in /docker/{SECOND}",
)
HOSTILE = st.lists(
    st.sampled_from(PARTS)
    | st.text(st.characters(max_codepoint=255, exclude_characters="\0"), max_size=6),
    max_size=12,
).map(lambda parts: "".join(parts).encode("utf-8", "surrogateescape"))
COMMANDS = HOSTILE.map(lambda name: name[:15])
FILES = HOSTILE.map(lambda name: name.replace(b"/", b"")[:255])
GROUPS = HOSTILE.map(lambda name: name.replace(b"\n", b"")[:255])


def escaped(text: bytes) -> str:
    """Return text as /dev/kmsg shows it (msg_add_ext_text in kernel/printk/printk.c)."""
    return "".join(
        chr(byte) if 32 <= byte < 127 and byte != 92 else f"\\x{byte:02x}" for byte in text
    )


@given(COMMANDS, FILES)
@fuzz.examples(400)
def test_no_name_of_a_process_or_file_blames_another_server(name: bytes, file: bytes) -> None:
    mapped = b" in %b[400000+1000]" % file
    for line in (
        b"%b[42]: segfault at 0 ip 4004d6 sp 7ffd0 error 4" % name,
        b"traps: %b[42] trap int3 ip:4004d6 sp:7ffd0 error:0" % name,
        b"traps: %b[42] general protection fault ip:1 sp:2 error:0" % name,
    ):
        (found,) = sort(escaped(line + mapped), processes={42: FIRST, 43: SECOND})
        assert found.container == FIRST
        # A line of another CPU may separate the name of the file.
        sorter = attribution.Attribution({42: FIRST, 43: SECOND}.get)
        found = sorter.take(Record(1, 1, None, escaped(line)))
        assert found is not None
        assert found.container == FIRST
        assert sorter.take(Record(2, 2, None, escaped(mapped), continues=True)) is None
    for line in (
        b"%b (42): drop_caches: 3" % name,
        b"Memory cgroup out of memory: Killed process 42 (%b) total-vm:1kB" % name,
    ):
        (found,) = sort(escaped(line), processes={42: FIRST, 43: SECOND})
        assert found.container == FIRST


@given(COMMANDS, COMMANDS, GROUPS)
@fuzz.examples(400)
def test_no_name_in_a_report_of_a_kill_blames_another_server(
    killer: bytes, victim: bytes, group: bytes
) -> None:
    own = f"/docker/{FIRST}".encode()
    lines = [
        b"%b invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0" % killer,
        b"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=%b,mems_allowed=0,"
        b"oom_memcg=%b/%b,task_memcg=%b/%b,task=%b,pid=42,uid=0"
        % (group.replace(b"/", b""), own, group, own, group, victim),
        b"Memory cgroup out of memory: Killed process 42 (%b) total-vm:1kB" % victim,
    ]
    (found,) = sort(*map(escaped, lines), processes={43: SECOND})
    assert found.container == FIRST
    assert found.victim is not None
    assert found.victim.pid == 42


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda rest: b"4,1,2,-;" + rest))
@fuzz.examples(200)
def test_no_record_is_an_error(content: bytes) -> None:
    with fuzz.bounds():
        record = kernel_log.parse(content)
        if record is not None:
            attribution.Attribution({}.get).take(record)


def test_the_task_that_the_kernel_names_is_asked() -> None:
    sorter = attribution.Attribution({42: FIRST}.get)
    found = sorter.take(Record(1, 1, 42, "anything"))
    assert found is not None
    assert found.container == FIRST


def test_a_report_without_an_end_holds_nothing_up() -> None:
    many = ["filler"] * 500
    line = f"cgroup: fork rejected by pids controller in /docker/{SECOND}"
    assert [found.container for found in sort(REPORT[0], *many, line)] == [SECOND]


# -- keeping ------------------------------------------------------------------------------


def test_lines_of_each_server_are_kept_and_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Rings(tmp_path / "kernel")
    assert kept.write(UUID, ["one", "two"]) == 0
    assert kept.write(OTHER, ["other"]) == 0
    assert command.main([UUID, "--folder", str(tmp_path / "kernel")]) == 0
    assert capsys.readouterr().out == "one\ntwo\n"


def test_a_flood_of_one_server_costs_no_other(tmp_path: Path) -> None:
    now = [0.0]
    kept = Rings(tmp_path, clock=lambda: now[0])
    dropped = sum(kept.write(UUID, ["x" * 1000] * 1000) for _ in range(100))
    assert dropped == 99_500
    assert kept.write(OTHER, ["other"]) == 0
    now[0] += 5
    assert kept.write(UUID, ["after"] * 200) == 100
    lines = list(rings.read(tmp_path, UUID))
    assert lines[-101] == "-- the rate limit dropped 99500 lines --\n"
    assert lines[-1] == "after\n"


def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    now = [0.0]
    kept = Rings(tmp_path, clock=lambda: now[0])
    for number in range(100):
        now[0] += 3600
        assert kept.write(UUID, [f"{number} " + "x" * 1000] * 400) == 0
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert size < 2_000_000
    assert next(reversed(list(rings.read(tmp_path, UUID)))).startswith("99 ")


def test_files_of_servers_that_are_gone_go_after_a_week(tmp_path: Path) -> None:
    kept = Rings(tmp_path)
    for uuid in (UUID, OTHER):
        kept.write(uuid, ["line"])
        os.utime(tmp_path / f"{uuid}.log", (0, 0))
    (tmp_path / "foreign").write_text("")
    os.utime(tmp_path / "foreign", (0, 0))
    kept.remove_old({UUID})
    assert {file.name for file in tmp_path.iterdir()} == {f"{UUID}.log", "foreign"}


@pytest.mark.parametrize("uuid", ["../../etc/passwd", "", UUID.upper().replace("1", "A")])
def test_only_files_of_servers_are_read(
    tmp_path: Path, uuid: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main([uuid, "--folder", str(tmp_path)])
    assert "is not the UUID of a server" in capsys.readouterr().err


def test_a_server_of_which_nothing_was_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([UUID, "--folder", str(tmp_path)]) == 1
    assert "There are no lines of the kernel's log" in capsys.readouterr().err
