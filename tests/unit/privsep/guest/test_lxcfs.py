# SPDX-License-Identifier: Apache-2.0
from novadocker.privsep.guest.lxcfs import Mounted, parse_mounts
from tests import fuzz

LINE = b"32 30 0:45 /proc/%s /proc/%s ro master:5 - fuse.lxcfs lxcfs rw,user_id=0,allow_other\n"


def test_other_mounts_have_any_name() -> None:
    other = b"31 30 0:5 / /mnt/\xff rw - tmpfs tmpfs rw\n"
    assert list(parse_mounts(other + LINE % (b"uptime", b"uptime") + other)) == [
        Mounted("0:45", "/proc/uptime", "/proc/uptime")
    ]


def test_a_tenants_mount_has_any_name() -> None:
    (found,) = parse_mounts(LINE % (b"a\x1cb", b"a\r\x85b"))
    assert (found.root, found.point) == ("/proc/a\x1cb", "/proc/a\r\udc85b")


def test_lines_of_other_mounts_take_little_memory() -> None:
    path = b"/\xff" + b"\\040-\\040" * (1 << 19)
    line = b"36 35 0:9 %b %b rw - tmpfs %b rw\n" % (path, path, path)
    with fuzz.bounds():
        assert list(parse_mounts(line + LINE % (b"uptime", b"uptime"))) == [
            Mounted("0:45", "/proc/uptime", "/proc/uptime")
        ]
