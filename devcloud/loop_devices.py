# SPDX-License-Identifier: Apache-2.0
"""Loop devices of the volumes' files. Standard library only, because ``down`` uses it, too."""

import subprocess
from pathlib import Path

BLOCK_DEVICES = Path("/sys/block")


def attach(file: Path) -> Path:
    """Attach a file to a loop device and return the device. Idempotent.

    :raises subprocess.CalledProcessError: the kernel has no loop device.
    """
    # Without --nooverlap, a second attachment of the file would be a second device.
    done = subprocess.run(
        ["losetup", "--nooverlap", "--find", "--show", file],
        check=True,
        capture_output=True,
        text=True,
    )
    return Path(done.stdout.strip())


def detach(file: Path) -> None:
    """Detach a file's loop device when its last opener closes it. Idempotent."""
    for device in devices_of(file):
        subprocess.run(["losetup", "--detach", device], check=True, capture_output=True)


def grow(file: Path) -> None:
    """Set the size of a file's loop device to the size of the file."""
    for device in devices_of(file):
        subprocess.run(["losetup", "--set-capacity", device], check=True, capture_output=True)


def devices_of(place: Path) -> list[Path]:
    """Return the loop devices of a file, or of the files below a directory."""
    found = []
    for entry in BLOCK_DEVICES.glob("loop*/loop/backing_file"):
        try:
            backing = Path(entry.read_text().strip())
        except OSError:
            # The device was detached meanwhile.
            continue
        if backing.is_relative_to(place):
            found.append(Path("/dev") / entry.parent.parent.name)
    return found
