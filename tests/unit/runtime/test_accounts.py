# SPDX-License-Identifier: Apache-2.0
import pytest

from novadocker.runtime import accounts

# /etc/shadow before and after root's password is set; the shim's tests use these cases too.
SHADOWS = [
    ("root:*:1:0:9:7:::\nbin:*:1::::::\n", "root:$6$x:20000:0:9:7:::\nbin:*:1::::::\n"),
    ("bin:*:1::::::\nroot:!\n", "bin:*:1::::::\nroot:$6$x:20000\n"),
    ("", "root:$6$x:20000:0:99999:7:::\n"),
    ("bin:*:1::::::\n", "bin:*:1::::::\nroot:$6$x:20000:0:99999:7:::\n"),
    ("bin:*:1::::::", "bin:*:1::::::\nroot:$6$x:20000:0:99999:7:::\n"),
    ("rooted:*:1:\nroot:*:0:0\n", "rooted:*:1:\nroot:$6$x:20000:0\n"),
    ("root:*:1\nroot:a:1\n", "root:$6$x:20000\nroot:a:1\n"),
    ("x:a\rroot:*:1:\x85root:*\n", "x:a\rroot:*:1:\x85root:*\nroot:$6$x:20000:0:99999:7:::\n"),
    ("a\rroot:*:1\nroot:*:2\n", "a\rroot:*:1\nroot:$6$x:20000\n"),
    ("\\n&|\\1:*\nroot:*:1:\n", "\\n&|\\1:*\nroot:$6$x:20000:\n"),
]


@pytest.mark.parametrize(("before", "after"), SHADOWS)
def test_set_password(before: str, after: str) -> None:
    found = accounts.set_password(before.encode(), "root", "$6$x", 20000)
    assert found.decode() == after


@pytest.mark.parametrize(
    ("passwd", "expected"),
    [
        ("root:x:0:0::/root:\n", True),
        ("root::0:0::/root:\n", False),
        ("bin:x:0:0:::\n", False),
        ("", False),
        ("root\n", False),
        # A line ends at a line feed alone.
        ("a\rroot:x:0:0::/:\n", False),
    ],
)
def test_shadowed(passwd: str, expected: bool) -> None:
    assert accounts.shadowed(passwd.encode(), "root") is expected
