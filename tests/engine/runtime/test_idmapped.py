# SPDX-License-Identifier: Apache-2.0
"""The mounts of a server with ids of its own, by the shim's functions without an engine."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from novadocker.privsep.guest import runtime, user_namespaces
from novadocker.privsep.network import namespace
from tests import CHECKOUT
from tests.engine import daemons, privileged_calls

FIRST = 1_900_150_784
# Ends itself at one of its system calls that mount, unmount or change a namespace.
PROGRAM = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from novadocker.runtime import idmapped
left = int(sys.argv[4])
def counted(call):
    def wrapper(*arguments):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return call(*arguments)
    return wrapper
for name in ("unshare", "mount", "attach", "clone", "setns", "unmount"):
    setattr(idmapped, name, counted(getattr(idmapped, name)))
root = sys.argv[2] + "/overlay2/layer/merged"
volumes = [sys.argv[2] + "/volumes/one/_data"]
idmapped.enter(idmapped.Layers(root), root, volumes, sys.argv[3], int(sys.argv[5]))
print("entered", os.stat(idmapped.PLACE + "/etc").st_uid, os.stat(volumes[0]).st_uid)
"""


# Calls privileged functions as nova-compute does: in processes with few capabilities.
CALLS = """
from novadocker.privsep.guest import runtime, user_namespaces
uuid, data_root = sys.argv[2:]
assert user_namespaces.why_impossible(data_root) == ""
for _ in range(2):
    runtime.create_own_namespace(uuid, 1900150784, 65536)
assert runtime.has_own_ids(uuid)
runtime.delete_namespace(uuid)
assert not runtime.has_own_ids(uuid)
"""


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """Return an engine's data root with one container of two layers and a volume."""
    for name in ("layer/diff", "layer/work", "layer/merged", "base/diff/etc", "l"):
        (tmp_path / "overlay2" / name).mkdir(parents=True)
    (tmp_path / "overlay2/l/BASE").symlink_to("../base/diff")
    (tmp_path / "overlay2/layer/lower").write_text("l/BASE")
    (tmp_path / "volumes/one/_data").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def user_namespace(instance_uuid: str) -> Iterator[str]:
    path = namespace.user_namespace_path(instance_uuid)
    ids = [(0, FIRST, 65536)]
    namespace.create_owned_namespace(instance_uuid, ids, ids)
    yield path
    runtime.delete_namespace(instance_uuid)


def test_a_death_at_any_point_leaves_no_mount(data_root: Path, user_namespace: str) -> None:
    before = daemons.mounts_of_shim(data_root)
    merged = data_root / "overlay2/layer/merged"
    options = "lowerdir=l/BASE,upperdir=layer/diff,workdir=layer/work"
    for point in range(100):
        subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", options, merged],
            cwd=data_root / "overlay2",
            check=True,
        )
        arguments = [CHECKOUT, data_root, user_namespace, point, FIRST]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
        )
        # As the engine does after a start that fails, and after the end of a container.
        subprocess.run(["umount", "-l", merged], check=False, stderr=subprocess.DEVNULL)
        assert daemons.mounts_of_shim(data_root) == before, point
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
    assert done.stdout == f"entered {FIRST} {FIRST}\n"
    assert point > 10
    assert list((data_root / "overlay2/layer/diff").iterdir()) == []


def test_the_trial_of_a_host(data_root: Path) -> None:
    before = daemons.mounts_of_shim(data_root)
    assert user_namespaces.why_impossible(str(data_root)) == ""
    assert daemons.mounts_of_shim(data_root) == before
    assert {path.name for path in data_root.iterdir()} == {"overlay2", "volumes"}


def test_a_file_system_without_idmapped_mounts(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "ramfs", "ramfs", tmp_path], check=True)
    try:
        found = user_namespaces.why_impossible(str(tmp_path))
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    assert re.fullmatch(r".* file system of .* has no idmapped mounts: Invalid argument", found)


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("mount --bind /dev/null /proc/version", "mount proc: Operation not permitted"),
        ("mount --bind /dev/null /sys/kernel/notes", "mount sysfs: Operation not permitted"),
    ],
)
def test_files_of_the_kernel_that_something_covers(
    data_root: Path, before: str, reason: str
) -> None:
    script = f"""{before}
exec {sys.executable} -c 'from novadocker.runtime import probe; probe.main()' {data_root}"""
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (
        f"a user namespace cannot {reason}; see whether something is mounted over files of the "
        "host's /proc or /sys\n"
    )


def test_the_privileged_processes_have_the_capabilities(
    data_root: Path, instance_uuid: str
) -> None:
    privileged_calls.run(CALLS, instance_uuid, data_root)
