# SPDX-License-Identifier: Apache-2.0
"""Control groups that a tenant created."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from novadocker.exporter import tree
from novadocker.exporter.tree import Tree
from novadocker.linux import cgroup
from tests import fuzz
from tests.unit.exporter.test_exporter import CONTAINER, FOREIGN, put, put_container

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


# Names of groups that a tenant creates: any bytes but a slash, a line feed and a zero.
PARTS = (
    *(b"\n", b"0::", b"1:memory:", b":", b"docker", f"docker-{FOREIGN}.scope".encode()),
    *(FOREIGN.encode(), b"\f", b"\r", b"\x1c", b"\x85", b"\xe2\x80\xa8", b" "),
)
NAMES = st.lists(st.sampled_from(PARTS) | st.binary(max_size=4), max_size=6).map(
    lambda parts: b"".join(parts).translate(None, b"/\n\0") or b"x"
)


@given(st.lists(NAMES, max_size=5), st.sampled_from([b"0:", b"7:pids", b"1:name=systemd"]))
@fuzz.examples(200)
def test_no_name_of_a_group_hides_its_container(
    tmp_path: Path, names: list[bytes], controllers: bytes
) -> None:
    (tmp_path / "proc/7").mkdir(parents=True, exist_ok=True)
    path = b"/".join([b"/docker", CONTAINER.encode(), *names])
    (tmp_path / "proc/7/cgroup").write_bytes(b"12:cpu:/\n%b:%b\n" % (controllers, path))
    with fuzz.bounds():
        assert cgroup.container_of_process(7, tmp_path) == CONTAINER


@given(st.binary(max_size=200) | st.lists(NAMES, max_size=20).map(b"\n".join))
@fuzz.examples(200)
def test_no_content_of_the_kernels_files_is_an_error(root: Path, content: bytes) -> None:
    (root / "proc/42").mkdir(parents=True, exist_ok=True)
    folder = root / f"sys/fs/cgroup{PATH}"
    for file in (*folder.iterdir(), root / "proc/7/cgroup", root / "proc/42/comm"):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content)
    with fuzz.bounds():
        cgroup.container_of_process(7, root)
        found = Tree(root)
        found.sample(PATH)
        (folder / "cgroup.procs").write_text("42\n")
        assert found.sample(PATH) is not None
        found.commonest_command(PATH)
