# SPDX-License-Identifier: Apache-2.0
"""Whatever is in the files that the runtime shim reads: a result or a fault, in bounded time."""

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from novadocker.runtime import accounts, create, documents, record, tree
from tests import fuzz

LIMITS = fuzz.examples(200)
ID = "0123456789abcdef" * 4

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
names = st.sampled_from(
    ["linux", "mounts", "namespaces", "type", "path", "network", "user", "destination", "source",
     "bind", "root", "uidMappings", "gidMappings", "containerID", "hostID", "size", "options",
     "/sys/fs/cgroup", "cgroup", "tmpfs", "/run", "ro", "cgroupsPath", "version", "devices",
     "resources", "memory", "limit", "major", "minor", "fileMode", "uid", "gid", "b", "/sys",
     "sysfs", "/etc/hosts", "source", "annotations", "readonlyPaths", "process", "capabilities"]
)  # fmt: skip
likely = st.recursive(
    st.none() | st.integers(-1, 5) | names,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=6),
)
passwd_lines = st.lists(
    st.lists(
        st.sampled_from(
            [b"root", b"web", b"x", b"", b"0", b"08", b"-1", b"4294967295", b"/", b"\r"]
        )
        | st.binary(max_size=8),
        max_size=8,
    ).map(b":".join),
    max_size=8,
).map(b"\n".join)


@LIMITS
@given(values)
def test_json_is_that_of_the_package(value: Any) -> None:
    assert documents.parse(json.dumps(value).encode()) == value
    assert json.loads(documents.serialize(value)) == value


def test_json_of_a_python_without_the_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "_json", None)
    try:
        importlib.reload(documents)
        value = {"a": [1, "ж\\", None, True, 2**64]}
        assert documents.serialize(value) == json.dumps(value, separators=(",", ":")).encode()
        assert documents.parse(documents.serialize(value)) == value
        for malformed in (b"", b"{", b"NaN", b"1 2", b"[" * 100_000, b"\xff"):
            with pytest.raises(ValueError):  # noqa: PT011
                documents.parse(malformed)
    finally:
        monkeypatch.undo()
        importlib.reload(documents)


# A short text and its repetitions, up to the largest file that the shim reads.
pieces = st.binary(max_size=8) | st.sampled_from([b"[", b'{"a":', b"9", b'"', b"\\u0000", b"\\"])
counts = st.sampled_from([1, 2, 100, 1 << 17])


@LIMITS
@given(pieces, pieces, counts)
@example(b"", b"[", 1 << 20)
@example(b"", b'{"a":', 200_000)
@example(b"", b"9", 1 << 20)
@example(b'"', b"\\u0000", 170_000)
@example(b'"', b"\\", 1 << 20)
def test_json_of_anything(begin: bytes, piece: bytes, count: int) -> None:
    fuzz.withstand(documents.parse, begin + piece * count, (ValueError,))


@LIMITS
@given(st.binary() | likely.map(lambda value: json.dumps(value).encode()))
def test_records(content: bytes) -> None:
    try:
        with fuzz.bounds():
            found = record.parse(content)
    except ValueError:
        return
    assert found.namespaces["network"].startswith("/run/netns/nova-")


@LIMITS
@given(st.binary() | likely.map(lambda value: json.dumps(value).encode()))
def test_configurations(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    try:
        with fuzz.bounds():
            config = create.Configuration(str(path), ID)
            create.join_namespaces(config, ID, {"network": "/", "user": "/"})
            create.let_systemd_manage(config)
            config.write()
            config.owner(0, 0)
        assert config.root.startswith("/")
        assert config.volumes is not None
    except tree.Fault:
        return
    assert json.loads(path.read_bytes())["linux"]["namespaces"]


changes: dict[str, Callable[[create.Configuration, tree.Tree], object]] = {
    "leave_etc_files": lambda config, _root: create.leave_etc_files(config, ID),
    "mount_tmp": create.mount_tmp,
    "let_engine_manage": lambda config, _root: create.let_engine_manage(
        config, tree.Owner(os.getuid(), os.getgid())
    ),
    "add_devices": lambda config, _root: create.add_devices(config, [], "/nonexistent"),
    "add_a_device": lambda config, _root: create.add_devices(
        config, [record.BlockDevice("/dev/vdb", "/dev/null", 8, 0, True)], "/nonexistent"
    ),
    "take_devices": lambda config, _root: config.take_devices(),
}
# What runc's configuration has, with hostile values in the places of others.
configurations = st.fixed_dictionaries(
    {},
    optional={
        "mounts": likely
        | st.lists(
            st.dictionaries(st.sampled_from(["destination", "type", "source", "options"]), likely)
        ),
        "process": likely | st.dictionaries(st.just("capabilities"), likely),
        "annotations": likely,
        "linux": likely
        | st.fixed_dictionaries(
            {},
            optional={
                "devices": likely
                | st.lists(
                    st.dictionaries(
                        st.sampled_from(
                            ["path", "type", "major", "minor", "fileMode", "uid", "gid"]
                        ),
                        likely,
                    )
                ),
                "namespaces": likely | st.lists(st.dictionaries(st.just("type"), names)),
                "resources": likely | st.dictionaries(st.sampled_from(["memory"]), likely),
                "cgroupsPath": likely,
                "readonlyPaths": likely,
            },
        ),
    },
)


@pytest.mark.parametrize("change", changes)
@fuzz.examples(50)
@given(configurations)
@example({"linux": {"devices": [{"path": []}]}})
@example(
    {
        "linux": {"namespaces": [{"type": "cgroup"}, {"type": "user"}], "cgroupsPath": "a:b:c"},
        "mounts": [{"destination": "/sys/fs/cgroup", "type": "cgroup", "options": [[], "ro"]}],
    }
)
def test_changes_of_configurations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, content: Any
) -> None:
    # No control group of this host is changed.
    monkeypatch.setattr(create, "_CONTROL_GROUPS", str(tmp_path))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    root = tree.Tree(str(tmp_path), {}, tree.Owner(os.getuid(), os.getgid()))
    try:
        with fuzz.bounds():
            config = create.Configuration(str(path), ID)
            changes[change](config, root)
            config.write()
    except (tree.Fault, FileNotFoundError):
        # The control group of the configuration does not exist.
        return
    assert isinstance(json.loads(path.read_bytes()), dict)


@LIMITS
@given(passwd_lines, st.sampled_from([1, 2]), st.sampled_from(["root", "web"]))
@example(b"\n", 1 << 20, "root")
@example(b"root", 1 << 18, "root")
@example(b"\nroots", 170_000, "root")
@example(b":", 1 << 20, "root")
@example(b"root:x:0", 1 << 17, "root")
def test_accounts(piece: bytes, count: int, user: str) -> None:
    content = piece * count
    with fuzz.bounds():
        accounts.shadowed(content, user)
        fields = accounts.find_entry(content, user)
        changed = accounts.set_password(content, user, "$6$a", 1)
    if fields is not None:
        try:
            uid, gid, _home = accounts.read_identity(fields)
            assert 0 <= uid < (1 << 32) - 1
            assert 0 <= gid < (1 << 32) - 1
        except ValueError:
            pass
    assert (accounts.find_entry(changed, user) or [])[:2] == [b"$6$a", b"1"]
    assert changed.endswith(b"\n")
    # No other line changes.
    kept = content.count(b"\n") + (bool(content) and not content.endswith(b"\n"))
    assert changed.count(b"\n") == kept + (fields is None)


paths = st.lists(
    st.sampled_from(["a", "b", "c", "..", ".", "", "\n", "f", "p", "v"]), max_size=8
).map("/".join)


@LIMITS
@given(st.dictionaries(st.sampled_from("abc"), paths.filter(bool), max_size=3), paths)
def test_paths(tmp_path_factory: pytest.TempPathFactory, links: dict[str, str], path: str) -> None:
    """A path never leads out of the container's root and its volumes."""
    outside = tmp_path_factory.mktemp("path")
    root = outside / "root"
    root.mkdir()
    (outside / "volume").mkdir()
    (root / "f").touch()
    os.mkfifo(root / "p")
    for name, target in links.items():
        (root / name).symlink_to(target)
    before = os.listdir(outside)
    open_files = len(os.listdir("/proc/self/fd"))
    owner = tree.Owner(os.getuid(), os.getgid())
    found = tree.Tree(str(root), {"/v": str(outside / "volume")}, owner)
    try:
        nodes = found.locate(path)
        for node in nodes:
            if node.exists:
                where = os.readlink(f"/proc/self/fd/{node.descriptor}")
                assert Path(where).is_relative_to(root) or where.startswith(f"{outside}/volume")
        found.make_folder(path)
    except tree.Fault:
        pass
    finally:
        for number in range(open_files, open_files + 100):
            try:
                if os.readlink(f"/proc/self/fd/{number}").startswith(str(outside)):
                    os.close(number)
            except OSError:
                continue
    assert os.listdir(outside) == before
