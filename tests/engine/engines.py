# SPDX-License-Identifier: Apache-2.0
"""Docker engines of a test's own."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.engine import daemons
from tests.engine.conftest import accepts, write_engine_config


class OwnEngine:
    """An engine below a folder; it can die and come back."""

    def __init__(self, folder: Path, data_root: Path, storage_driver: str) -> None:
        self.data_root = data_root
        self._folder = folder
        self.url = write_engine_config(
            folder, **{"data-root": str(data_root), "storage-driver": storage_driver}
        )
        self.start()

    def start(self) -> None:
        """Start it, also after it was killed."""
        (self._folder / "docker.pid").unlink(missing_ok=True)
        self._process = daemons.start(
            ["dockerd", "--config-file", str(self._folder / "daemon.json")],
            self._folder / "log",
            lambda: accepts(self._folder / "docker.sock"),
        )

    def kill(self) -> None:
        """Kill it without a chance to tidy up; its containers live on."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End it."""
        daemons.stop(self._process)


@contextmanager
def own_engine(folder: Path, storage_driver: str, filesystem: str = "") -> Iterator[OwnEngine]:
    """Run an engine.

    :param filesystem: that of the data root, in a file: ``btrfs``, or ``xfs`` with project quota;
        by default the machine's
    """
    data = folder / "data"
    data.mkdir(parents=True)
    if filesystem:
        with (folder / "disk").open("wb") as disk:
            disk.truncate(1 << 30)
        subprocess.run([f"mkfs.{filesystem}", "-q", str(folder / "disk")], check=True)
        options = "loop,prjquota" if filesystem == "xfs" else "loop"
        subprocess.run(["mount", "-o", options, str(folder / "disk"), str(data)], check=True)
    engine = OwnEngine(folder, data / "docker", storage_driver)
    yield engine
    engine.stop()
    for mount in reversed(daemons.mounts_below(folder)):
        subprocess.run(["umount", mount], check=True)
