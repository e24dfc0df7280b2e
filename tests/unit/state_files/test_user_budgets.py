# SPDX-License-Identifier: Apache-2.0
import os
import time
from pathlib import Path

from novadocker.state_files import user_budgets
from novadocker.virt.docker.host.user_budgets import UserBudgets


def test_what_the_driver_counts_is_read(tmp_path: Path) -> None:
    assert user_budgets.read(tmp_path) == {}
    UserBudgets(tmp_path, lambda: (100, 3)).tell()
    assert user_budgets.read(tmp_path) == {"inotify_instances": 100, "pipe_pages": 48}


def test_a_count_of_a_nova_compute_that_is_down(tmp_path: Path) -> None:
    user_budgets.tell(tmp_path, {"pipe_pages": 1})
    (path,) = tmp_path.iterdir()
    hour_ago = time.time() - 3600
    os.utime(path, (hour_ago, hour_ago))
    assert user_budgets.read(tmp_path) == {}


def test_malformed_lines() -> None:
    assert user_budgets.parse("a 1\nb -1\nc\n\nd 2 3\ne \u0663\nf 4") == {"a": 1, "f": 4}
