# SPDX-License-Identifier: Apache-2.0
"""Control groups that a tenant created."""

from pathlib import Path

import pytest

from novadocker.exporter import tree
from novadocker.exporter.tree import Tree
from tests.unit.exporter.test_exporter import CONTAINER, put, put_container

PATH = f"/docker/{CONTAINER}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put_container(tmp_path, 2, CONTAINER)
    put(tmp_path, {"sys/fs/cgroup/cgroup.controllers": ""})
    (tmp_path / f"sys/fs/cgroup{PATH}/cgroup.procs").write_text("")
    return tmp_path


@pytest.mark.parametrize("name", ["a\fb", "a\x1c", "a\x85", "\udcff", "a\r", "12 13", "n" * 255])
def test_the_name_of_a_group_is_any(root: Path, name: str) -> None:
    put(root / f"sys/fs/cgroup{PATH}", {f"{name}/{name}/cgroup.procs": "42\n"})
    found = Tree(root)
    assert dict(found.containers()) == {CONTAINER: PATH}
    assert found.process(PATH) == 42
    assert found.sample(PATH) is not None


def test_groups_below_are_read_to_a_limit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "_MOST_GROUPS", 10)
    for number in range(30):
        put(root / f"sys/fs/cgroup{PATH}", {f"{number}/cgroup.procs": f"{number}\n"})
    assert len(list(Tree(root)._processes(PATH))) == 9


def test_groups_that_are_too_deep_are_not_read(root: Path) -> None:
    put(root / f"sys/fs/cgroup{PATH}", {"a/b/cgroup.procs": "1\n", "a/b/c/cgroup.procs": "2\n"})
    assert list(Tree(root)._processes(PATH)) == [1]
