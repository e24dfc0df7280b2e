# SPDX-License-Identifier: Apache-2.0
"""Functions that the image tests run in new processes, each in the role of a nova-compute."""

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
    # The tests' engine runs on this machine.
    machine = subprocess.run(["uname", "-m"], check=True, capture_output=True, text=True).stdout
    return images_store.ImageStore(Engine(url, timeout=30, load_timeout=120), machine.strip())


def prepare(folder: Path, fake_glance: FakeGlance) -> None:
    conf.CONF([], project="nova", default_config_files=[])
    conf.CONF.set_override("instances_path", str(folder))
    images_store.glance.API = lambda: fake_glance


def boot_many(
    url: str, folder: Path, fake_glance: FakeGlance, barrier: Barrier, result: Connection
) -> None:
    """Request one image from eight threads; send the results."""
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
    """Load one image; send the growth of the process's peak memory in bytes."""
    prepare(folder, fake_glance)
    store = new_store(url)
    (image_id,) = fake_glance.records
    before = most_memory()
    store.ensure(None, fake_glance.meta(image_id))
    result.send(most_memory() - before)


def most_memory() -> int:
    """Return the peak memory of this process in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) * 1024
