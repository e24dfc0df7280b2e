# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from novadocker.linux import cgroup

V1 = "9:name=systemd:/docker/1\n8:cpu,memory:/docker/1\n0::/docker/1\n"
V1_FILE = "sys/fs/cgroup/cpu,memory/docker/1/memory.oom_control"
V2_FILE = "sys/fs/cgroup/docker/1/memory.events"


@pytest.mark.parametrize(
    ("groups", "file", "content", "expected"),
    [
        (V1, V1_FILE, "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", 3),
        ("0::/docker/1\n", V2_FILE, "low 0\nmax 9\noom 5\noom_kill 4\noom_group_kill 0\n", 4),
        # A kernel before 4.13.
        (V1, V1_FILE, "oom_kill_disable 0\nunder_oom 0\n", 0),
        (V1, V2_FILE, "oom_kill 4\n", 0),
    ],
)
def test_kills(tmp_path: Path, groups: str, file: str, content: str, expected: int) -> None:
    for path, text in (("proc/7/cgroup", groups), (file, content)):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(text)
    assert cgroup.read_kills(7, tmp_path) == expected


def test_no_process(tmp_path: Path) -> None:
    assert cgroup.read_kills(7, tmp_path) == 0
