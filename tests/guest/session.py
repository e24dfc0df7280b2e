# SPDX-License-Identifier: Apache-2.0
"""One run of tests in the guest, from its disks to its results."""

import fcntl
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from devcloud.settings import load_settings
from tests.guest import images, machine


@contextmanager
def folder() -> Iterator[Path]:
    """Yield the directory of the guest's disks, locked against other runs, which wait."""
    found = load_settings().folder / "guest"
    found.mkdir(parents=True, exist_ok=True)
    with (found / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        machine.end_leftovers(found / "run")
        for left in (found / "run", *found.glob("*-draft")):
            shutil.rmtree(left, ignore_errors=True)
        yield found


def run(held: Path, release: str, suites: Mapping[str, Sequence[str]], seconds: float) -> Path:
    """Run tests in the guest and return the directory of their reports, ``NAME.xml``.

    The guest's console is ``run/console`` in the locked directory.

    :param release: the guest's Debian, one of ``images.PYTHONS``
    :param suites: pytest's arguments by name; the suites run concurrently
    :raises machine.GuestFailed: the guest did not power off in time
    """
    system = images.system_folder(held, release)
    libraries = images.libraries_folder(held, release)
    work = held / "run"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    disks = machine.Disks(
        kernel=system / "vmlinuz",
        initrd=work / "initrd",
        system=system / "disk",
        libraries=libraries / "disk",
        payload=work / "payload.tar",
    )
    images.make_initrd(disks.initrd, system, work / "initrd-root")
    images.make_payload(disks.payload, work / "payload", suites)
    written = machine.run(disks, work, seconds)
    (work / "results").mkdir()
    # tarfile has no extraction filter before Python 3.11.4, so tar unpacks the archive.
    subprocess.run(["tar", "-xf", written, "-C", work / "results"], check=True, timeout=60)
    written.unlink()
    return work / "results"
