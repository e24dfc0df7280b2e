# SPDX-License-Identifier: Apache-2.0
"""An emulated machine that runs the tests on its third disk and writes results to its last disk."""

import os
import platform
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.engine import daemons

_RESULT_BYTES = 32 << 20
# no_timer_check: on a busy machine, an emulator fails the kernel's test of its timer. There, the
# first services of the boot take minutes, too.
_COMMAND_LINE = (
    "root=/dev/vda rw console=ttyS0 quiet panic=-1 mitigations=off no_timer_check"
    " systemd.default_timeout_start_sec=600 systemd.show_status=no"
    " systemd.unit=novadocker-tests.service systemd.log_target=kmsg"
)


class GuestFailed(Exception):
    """The guest did not power off in time; the text has its last lines of output."""


@dataclass(frozen=True)
class Disks:
    """The files that the guest starts from."""

    kernel: Path
    initrd: Path
    system: Path
    libraries: Path
    payload: Path


def run(disks: Disks, folder: Path, seconds: float) -> Path:
    """Run a guest until it powers off; return the disk that it wrote, a tar archive.

    :param folder: directory for the console (``console``) and the results
    :param seconds: time until the guest is killed
    """
    results = folder / "results.tar"
    with results.open("wb") as disk:
        disk.truncate(_RESULT_BYTES)
    console = folder / "console"
    command = [
        "qemu-system-x86_64",
        *("-name", str(folder / "guest")),
        *("-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512"),
        *("-cpu", "max", "-smp", "2", "-m", "3072"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none"),
        *("-serial", f"file:{console}"),
        *("-device", "virtio-rng-pci"),
        *("-kernel", str(disks.kernel), "-initrd", str(disks.initrd)),
        *("-append", _COMMAND_LINE),
        # The guest's writes to the kept disks go to unnamed temporary files.
        *_drive(disks.system, "snapshot=on"),
        *_drive(disks.libraries, "readonly=on"),
        *_drive(disks.payload, "readonly=on"),
        *_drive(results, "cache=unsafe"),
    ]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(folder / "log").open("wb"),
        env={**os.environ, "TMPDIR": str(folder)},
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise GuestFailed(
            f"The guest did not power off within {seconds:.0f} s:\n{tail(folder)}"
        ) from None
    finally:
        process.kill()
        process.wait()
    if process.returncode != 0:
        raise GuestFailed(f"QEMU exited with status {process.returncode}:\n{tail(folder)}")
    return results


def tail(folder: Path) -> str:
    """Return the last lines of QEMU's errors and of the guest's console."""
    files = [path for path in (folder / "log", folder / "console") if path.exists()]
    lines = [line for path in files for line in path.read_text(errors="replace").splitlines()]
    return "\n".join(lines[-60:])


def end_leftovers(folder: Path) -> None:
    """Kill the guest of an interrupted run."""
    for pid in daemons.processes_of(folder):
        daemons.kill(pid, signal.SIGKILL)


def is_supported() -> bool:
    """Return True if this machine has the architecture of the guest's Debian."""
    return platform.machine() == "x86_64"


def _drive(path: Path, options: str) -> tuple[str, ...]:
    return ("-drive", f"file={path},format=raw,if=virtio,{options}")
