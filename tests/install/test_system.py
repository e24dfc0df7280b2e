# SPDX-License-Identifier: Apache-2.0
"""The systems of the other tests: a Debian boots, is apart from the machine, and leaves nothing."""

import os
import socket
from pathlib import Path

import pytest

from tests.install import system


@pytest.mark.parametrize(
    ("suite", "release"),
    [pytest.param("bookworm", "12", id="bookworm"), pytest.param("trixie", "13", id="trixie")],
)
def test_a_debian_boots(held: Path, suite: str, release: str) -> None:
    root = system.root_folder(held, suite, [])
    with system.copied(held, root) as copy:
        assert "Package: python3\n" in system.prepare(copy, "apt-cache", "show", "python3")
        with system.booted(copy, "host9") as found:
            assert found.run("hostname") == "host9\n"
            assert found.run("cat", "/etc/debian_version").startswith(release)
            assert found.run("systemctl", "is-system-running", check=False) == "running\n"
            assert found.run("cat", "/proc/1/comm") == "systemd\n"
            assert found.status("test", "-w", "/proc/sys/fs/aio-max-nr") != 0
            assert found.status("test", "-w", "/proc/sys/net/ipv4/ip_forward") == 0
            routes = found.run("ip", "route")
            assert routes == ""
            with pytest.raises(system.CommandFailed, match="status 7:\nwhy"):
                found.run("sh", "-c", "echo why; exit 7")
            pid = found.init
        work = copy.parent
        assert not os.path.exists(f"/proc/{pid}")
    assert not work.exists()
    assert str(work) not in Path("/proc/self/mountinfo").read_text()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/{work.name}"))
    assert socket.gethostname() != "host9"
