# SPDX-License-Identifier: Apache-2.0
"""What the tests of images run in fresh processes, each like a nova-compute of its own."""

import re
import subprocess
import threading
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

from nova import conf

from novadocker.virt.docker.engine.client import Engine
from novadocker.virt.docker.images import store as images_store
from tests.fake_glance import FakeGlance


def new_store(url: str) -> images_store.ImageStore:
    # the engine of these tests runs on this machine
    machine = subprocess.run(["uname", "-m"], check=True, capture_output=True, text=True).stdout
    return images_store.ImageStore(Engine(url, timeout=30, load_timeout=120), machine.strip())


def prepare(folder: Path, fake_glance: FakeGlance) -> None:
    conf.CONF([], project="nova", default_config_files=[])
    conf.CONF.set_override("instances_path", str(folder))
    images_store.glance.API = lambda: fake_glance


def boot_many(
    url: str, folder: Path, fake_glance: FakeGlance, barrier: Barrier, result: Connection
) -> None:
    """Let eight threads ask for the one image; send what they get."""
    prepare(folder, fake_glance)
    store = new_store(url)
    (image_id,) = fake_glance.records
    found: list[str] = []

    def boot() -> None:
        barrier.wait(timeout=60)
        found.append(store.ensure(None, fake_glance.meta(image_id)).id)

    threads = [threading.Thread(target=boot) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    result.send(found)


def load_large(url: str, folder: Path, fake_glance: FakeGlance, result: Connection) -> None:
    """Load the one image; send by how many bytes the process grew at most."""
    prepare(folder, fake_glance)
    store = new_store(url)
    (image_id,) = fake_glance.records
    before = most_memory()
    store.ensure(None, fake_glance.meta(image_id))
    result.send(most_memory() - before)


def most_memory() -> int:
    """Return the most bytes of memory that this process ever had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) * 1024
