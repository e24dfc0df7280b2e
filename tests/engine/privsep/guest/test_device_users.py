# SPDX-License-Identifier: Apache-2.0
"""The search for processes that have a device open, on this kernel."""

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from novadocker.linux import device_users
from tests.engine import loop_devices

CONTAINER = uuid.uuid4().hex * 2
START = "import ctypes, os, sys, threading, time; c = ctypes.CDLL(None); device = sys.argv[1]"
READY = "print('ready', flush=True); sys.stdin.read()"
THREAD = """
def own():
    assert c.unshare(0x400) == 0
    os.open(device, os.O_RDONLY)
    ready.set()
    time.sleep(1000)
ready = threading.Event()
threading.Thread(target=own, daemon=True).start()
assert ready.wait(10)
"""
# A FUSE file system whose program never answers.
FUSE = """
assert c.unshare(0x20000) == 0
assert c.mount(b"", b"/", None, 1 << 14 | 1 << 18, None) == 0
fuse = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
assert c.mount(b"test", sys.argv[2].encode(), b"fuse", 0, options) == 0
os.open(sys.argv[2], os.O_PATH)
"""
Process = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    with loop_devices.volume(tmp_path / "volume", 1 << 20) as made:
        yield made


@pytest.fixture
def process(tmp_path: Path, device: str) -> Iterator[Process]:
    """Yield a function that starts a program in the control group of a container."""
    hierarchies = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
    found = [path for path in hierarchies if (path / "cgroup.procs").exists()]
    if not found:
        pytest.skip("this host has no control groups of version 2")
    group, folder = found[0] / CONTAINER, tmp_path / "fuse"
    group.mkdir()
    folder.mkdir()
    with ExitStack() as undo:
        undo.callback(group.rmdir)

        def start(code: str) -> "subprocess.Popen[str]":
            script = f'echo $$ >{group}/cgroup.procs; exec "$@"'
            program = f"{START}\n{code}\n{READY}"
            made = subprocess.Popen(
                ["sh", "-c", script, "sh", sys.executable, "-c", program, device, folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            undo.callback(made.wait)
            undo.callback(made.kill)
            assert made.stdout is not None
            assert made.stdout.readline() == "ready\n"
            return made

        yield start


def find(device: str) -> str:
    return device_users.find(CONTAINER, os.stat(device).st_rdev)


def test_a_descriptor_and_a_mapping(process: Process, device: str) -> None:
    assert find(device) == ""
    first = process("os.open(device, os.O_RDONLY)")
    assert find(device).startswith("process 'python")
    first.kill()
    first.wait()
    assert find(device) == ""
    process(
        "import mmap; f = os.open(device, os.O_RDONLY);"
        "m = mmap.mmap(f, 4096, prot=mmap.PROT_READ); os.close(f)"
    )
    assert find(device).startswith("process 'python")


def test_the_descriptors_of_a_thread(process: Process, device: str) -> None:
    process(THREAD)
    assert find(device).startswith("process 'python")


@pytest.mark.parametrize("end", ["", "os.close(fuse);"])
def test_a_file_system_of_a_tenant_that_does_not_answer(
    process: Process, device: str, end: str
) -> None:
    started = process(f"{FUSE}{end}")
    # Ends a search that waits.
    timer = threading.Timer(10, started.kill)
    timer.start()
    try:
        start = time.monotonic()
        assert find(device) == ""
        assert time.monotonic() - start < 5
        process(f"{FUSE}{end}os.open(device, os.O_RDONLY)")
        assert find(device).startswith("process 'python")
    finally:
        timer.cancel()
