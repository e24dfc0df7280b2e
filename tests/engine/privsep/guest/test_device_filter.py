# SPDX-License-Identifier: Apache-2.0
"""The filter of devices of a control group of version 2, in the kernel."""

import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from novadocker.linux import device_filter
from novadocker.linux.device_filter import Rule
from tests.engine import loop_devices

RULES = [Rule(False), *device_filter.RUNC_RULES]


@pytest.fixture
def group() -> Iterator[Path]:
    """Yield a control group with a program as runc attaches it."""
    hierarchies = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
    found = [path for path in hierarchies if (path / "cgroup.procs").exists()]
    if not found:
        pytest.skip("this host has no control groups of version 2")
    made = found[0] / f"novadocker-test-{os.getpid()}"
    made.mkdir()
    directory = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
    program = device_filter._load(device_filter.compile_rules(RULES))
    device_filter._call(8, struct.pack("=5I", directory, program, 6, 2, 0))
    os.close(program)
    os.close(directory)
    yield made
    made.rmdir()


def opens(group: Path, path: str, flags: int) -> bool:
    """Return True if a process of a control group can open a device."""
    code = f"import os; os.open({path!r}, {flags})"
    found = subprocess.run(
        ["sh", "-c", f'echo $$ >{group}/cgroup.procs; exec python3 -c "$0"', code],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0 or "PermissionError" in found.stderr, found.stderr
    return found.returncode == 0


def test_a_volume_is_allowed_and_denied_again(group: Path, tmp_path: Path) -> None:
    with loop_devices.volume(tmp_path / "volume", 1 << 20) as device:
        number = os.stat(device).st_rdev
        numbers = os.major(number), os.minor(number)
        assert opens(group, "/dev/null", os.O_RDWR)
        assert not opens(group, device, os.O_RDONLY)
        device_filter.replace_program(group, [*RULES, Rule(True, "b", "r", *numbers)])
        assert opens(group, device, os.O_RDONLY)
        assert not opens(group, device, os.O_RDWR)
        device_filter.replace_program(group, [*RULES, Rule(True, "b", "rw", *numbers)])
        assert opens(group, device, os.O_RDWR)
        device_filter.replace_program(group, RULES)
        assert not opens(group, device, os.O_RDONLY)
        assert opens(group, "/dev/null", os.O_RDWR)


def test_a_group_opens_the_device_of_tunnels(group: Path) -> None:
    if not os.path.exists("/dev/net/tun"):
        pytest.skip("this host has no /dev/net/tun")
    assert opens(group, "/dev/net/tun", os.O_RDWR)
    assert not opens(group, "/dev/fuse", os.O_RDWR)
