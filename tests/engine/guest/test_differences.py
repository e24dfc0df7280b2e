# SPDX-License-Identifier: Apache-2.0
"""Each line of the page "Differences from a virtual machine", tried in a container."""

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.engine.masks import MASKED_PATHS
from tests import CHECKOUT
from tests.engine import machines
from tests.engine.machines import Machine

_PAGE = CHECKOUT / "docs" / "differences.rst"
ADJ_OFFSET = 1
_PROGRAMS = ("chrt", "iptables", "unshare")

Try = Callable[[Machine], None]


@pytest.fixture(scope="module")
def plain(engine: Engine, engine_url: str) -> Iterator[Machine]:
    """Yield a container of a flavor without extra specs."""
    with (
        machines.connected(engine_url, *map(str, map(shutil.which, _PROGRAMS))) as client,
        machines.machine(engine, client) as found,
    ):
        yield found


def denied(*scripts: str) -> Try:
    """Return a test that each script fails because the kernel denies a permission."""

    def attempt(server: Machine) -> None:
        for script in scripts:
            code, output = server.shell(script)
            assert code != 0, (script, output)
            assert re.search("permitted|[Pp]ermission denied", output), output

    return attempt


def refused_call(numbers: tuple[int, int], *arguments: int) -> Try:
    """Return a test that a system call fails with EPERM.

    :param numbers: the number of the call on x86-64 and on 64-bit Arm
    """

    def attempt(server: Machine) -> None:
        number = numbers[os.uname().machine == "aarch64"]
        words = ", ".join(map(str, (number, *arguments)))
        program = f"$r = syscall({words}); print $r == -1 ? $!+0 : 0"
        assert server.run("perl", "-e", program) == (0, str(errno.EPERM))

    return attempt


def both(*tries: Try) -> Try:
    def attempt(server: Machine) -> None:
        for each in tries:
            each(server)

    return attempt


def disks_are_the_hosts(server: Machine) -> None:
    code, output = server.run("cat", "/proc/partitions")
    assert code == 0
    assert _disks(output) == _disks(Path("/proc/partitions").read_text())
    no_device_nodes(server)


def _disks(partitions: str) -> list[list[str]]:
    """Return the fields of each line without those of loop devices, which other tests make."""
    lines = map(str.split, partitions.splitlines())
    return [fields for fields in lines if fields and not fields[-1].startswith("loop")]


def kernel_is_the_hosts(server: Machine) -> None:
    assert server.run("uname", "-r") == (0, os.uname().release)
    refused_call((175, 105), 0, 0, 0)(server)


def adjtimex(server: Machine, modes: int) -> int:
    """Call adjtimex(2). Return the error's number, or 0."""
    number = 171 if os.uname().machine == "aarch64" else 159
    call = f'$t = pack("I", {modes}) . "\\0" x 204; $r = syscall({number}, $t)'
    code, output = server.run("perl", "-e", f"{call}; print $r == -1 ? $!+0 : 0")
    assert code == 0, output
    return int(output)


def clock_is_the_hosts(server: Machine) -> None:
    # date prints the error and goes on, so its exit status differs between versions.
    assert "permitted" in server.shell("date -s 2000-01-01")[1]
    assert [adjtimex(server, modes) for modes in (0, ADJ_OFFSET)] == [0, errno.EPERM]


def no_kernel_log(server: Machine) -> None:
    denied("dmesg")(server)
    assert server.shell("test -e /dev/kmsg")[0] == 1


def sysinfo_is_the_hosts(server: Machine) -> None:
    total = re.search(r"MemTotal: +(\d+) kB", Path("/proc/meminfo").read_text())
    assert total
    assert re.search(rf"Mem: +{total[1]} ", server.run("free", "-k")[1])
    path = "/sys/fs/cgroup/memory/memory.limit_in_bytes"
    limit = server.shell(f"cat {path} || cat /sys/fs/cgroup/memory.max")
    assert limit[1].split()[-1] == str(machines.LIMITS.memory_bytes)


def boot_id_is_the_hosts(server: Machine) -> None:
    name = "/proc/sys/kernel/random/boot_id"
    assert server.run("cat", name) == (0, Path(name).read_text().strip())
    code, started = server.shell("stat -c %Z /proc/1")
    assert code == 0
    assert abs(int(started) - os.stat(f"/proc/{server.pid}").st_ctime) <= 1


def directories_of_the_image(server: Machine) -> None:
    root = Path(f"/proc/{server.pid}/root")
    with pytest.raises(OSError, match="Invalid cross-device link"):
        (root / "root").rename(root / "moved")
    assert server.shell("mv /root /moved && mv /moved /root") == (0, "")


def no_device_nodes(server: Machine) -> None:
    denied("mknod /tmp/null c 1 3", "mknod /tmp/disk b 7 0")(server)
    assert server.shell("mknod /tmp/fifo p && rm /tmp/fifo") == (0, "")


def hardware_is_hidden(server: Machine) -> None:
    hidden = [path for path in map(Path, MASKED_PATHS) if path.exists()]
    assert Path("/proc/interrupts") in hidden
    for path in hidden:
        shown = server.shell(f"{'ls' if path.is_dir() else 'cat'} {path}")
        assert shown == (0, ""), path


def orphans_stay(server: Machine) -> None:
    assert server.shell("(sh -c 'echo $$ > /tmp/orphan' &)")[0] == 0
    server.shell("while [ ! -s /tmp/orphan ]; do sleep 0.1; done; sleep 0.1")
    assert "zombie" in server.shell("grep State /proc/$(cat /tmp/orphan)/status")[1]


_TRIES: dict[str, Try] = {
    "Mounts": denied("mount -t tmpfs none /tmp", "mount -o bind /etc /tmp", "umount /dev/shm"),
    "Disks": disks_are_the_hosts,
    "Kernel modules": kernel_is_the_hosts,
    "Clock": clock_is_the_hosts,
    "Realtime": denied("chrt -f 50 true", "perl -e 'setpriority 0, 0, -5 or die $!'"),
    "Kernel log": no_kernel_log,
    "Memory and uptime by sysinfo": sysinfo_is_the_hosts,
    "Swap": denied("swapon /bin/busybox"),
    "Boot id": boot_id_is_the_hosts,
    "Host name": denied("hostname other"),
    "Kernel parameters": lambda server: _read_only(server, "kernel/panic"),
    "Directories of the image": directories_of_the_image,
    "Device nodes": no_device_nodes,
    "Addresses": denied("ip address add 10.9.9.9/24 dev lo", "ip route add 10.8.0.0/16 dev lo"),
    "Firewall": denied("iptables -A INPUT -j DROP"),
    "Namespaces": denied("unshare -m true", "unshare -n true", "unshare -U true"),
    "Memory policy": both(
        refused_call((238, 237), 0, 0, 0), refused_call((237, 235), 0, 0, 0, 0, 0, 0)
    ),
    "Kernel keys": both(refused_call((250, 219), 0, 0), refused_call((248, 217), 0, 0, 0, 0, 0)),
    "Performance counters": both(
        refused_call((298, 241), 0, 0, -1, -1, 0), refused_call((321, 280), 0, 0, 0)
    ),
    "Hardware": hardware_is_hidden,
    "Orphans": orphans_stay,
}
_ELSEWHERE = {
    "Root on a volume": (
        "tests/engine/operations/test_boot_volumes.py::test_the_life_of_a_server_on_a_volume"
    ),
}
"""The tests of lines about other servers than this module's."""


def _read_only(server: Machine, parameter: str) -> None:
    code, output = server.shell(f"echo 1 > /proc/sys/{parameter}")
    assert code != 0
    assert "Read-only file system" in output


def subjects() -> list[str]:
    """Return the first column of the page's table without its header."""
    return re.findall(r"^   \* - (.+)$", _PAGE.read_text(), re.MULTILINE)[1:]


def test_every_line_of_the_page_is_tried() -> None:
    assert [subject for subject in subjects() if subject not in _ELSEWHERE] == list(_TRIES)
    assert set(_ELSEWHERE) - set(subjects()) == set()
    for test in _ELSEWHERE.values():
        path, _, function = test.partition("::")
        assert f"def {function}(" in (CHECKOUT / path).read_text()


@pytest.mark.parametrize("subject", _TRIES)
def test_difference(plain: Machine, subject: str) -> None:
    _TRIES[subject](plain)
