# SPDX-License-Identifier: Apache-2.0
"""Privileged functions for the config drives of this host, below /var/lib/novadocker.

Only root can read the directory, because config drives contain passwords. It survives a restart of
the host, because a container does not start if the source of a bind mount is missing. If an image
asks for a block device, the config drive's image is attached to a loop device before each start.
The engine finds the loop device by a symbolic link below /run.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from oslo_concurrency import lockutils, processutils

from novadocker import privsep
from novadocker.privsep import arguments

FOLDER = Path("/var/lib/novadocker/config-drives")
LINKS = Path("/run/novadocker/drives")

_HOST = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,255}")
_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,64}")
# The names of directories precede the name of the file.
_PATH = re.compile(r"([^/]+/){0,8}[^/]+")
_IMAGE = "config-2.iso"
_MOST_FILES = 1000
_MOST_BYTES = 32 << 20
# chown(2) takes the highest id for "unchanged".
_OWNERS = range((1 << 32) - 1)


def folder(host: str, instance_uuid: str) -> str:
    """Return the directory of an instance's config drive.

    :param host: nova-compute's ``[DEFAULT] host``, because several may run on one machine
    :raises ValueError: an argument is malformed
    """
    return str(_folder(host, instance_uuid))


def files_folder(host: str, instance_uuid: str) -> str:
    """Return the directory of the files in an instance's config drive.

    :param host: nova-compute's ``[DEFAULT] host``, because several may run on one machine
    :raises ValueError: an argument is malformed
    """
    return str(_folder(host, instance_uuid) / "files")


def device_link(instance_uuid: str) -> str:
    """Return the path of the symbolic link to the block device of an instance's config drive.

    The link exists while the device is attached.

    :raises ValueError: ``instance_uuid`` is malformed
    """
    return str(LINKS / arguments.instance_uuid(instance_uuid))


@privsep.interior_pctxt.entrypoint
def write_drive(
    host: str,
    instance_uuid: str,
    files: Mapping[str, bytes],
    owner: tuple[int, int] = (0, 0),
    image: bytes = b"",
) -> None:
    """Write an instance's config drive. Replaces an older one.

    :param files: contents by relative path
    :param owner: user and group id on the host of the container's root
    :param image: content of the block device; empty if the instance gets none
    :raises ValueError: an argument is malformed or too large
    """
    target = _folder(host, instance_uuid)
    arguments.mapping(files)
    user, group = (arguments.number(_OWNERS, number) for number in arguments.items(owner))
    contents = [arguments.data(_MOST_BYTES, content) for content in (*files.values(), image)]
    if len(files) > _MOST_FILES or sum(map(len, contents)) > _MOST_BYTES:
        raise ValueError(
            f"the config drive has more than {_MOST_FILES} files or {_MOST_BYTES} bytes"
        )
    _check_paths(files)
    target.parent.mkdir(0o700, parents=True, exist_ok=True)
    # A crash must not leave half a config drive, so the directory is filled and then renamed.
    made = Path(tempfile.mkdtemp(dir=target.parent, prefix="."))
    try:
        (made / "files").mkdir(0o755)
        for path, content in files.items():
            file = made / "files" / path
            file.parent.mkdir(0o755, parents=True, exist_ok=True)
            _write(file, content, (user, group))
        if image:
            _write(made / _IMAGE, image, (0, 0))
        _delete(target)
        os.rename(made, target)
    except BaseException:
        shutil.rmtree(made)
        raise


@privsep.interior_pctxt.entrypoint
def delete_drive(host: str, instance_uuid: str) -> None:
    """Delete an instance's config drive, whose device must be detached.

    Does nothing if it does not exist.

    :raises ValueError: an argument is malformed
    """
    _delete(_folder(host, instance_uuid))


@privsep.network_pctxt.entrypoint
def attach_device(host: str, instance_uuid: str) -> None:
    """Attach the image of an instance's config drive to a loop device. Idempotent.

    :raises ValueError: an argument is malformed
    :raises OSError: the config drive has no image
    :raises ProcessExecutionError: no loop device is free, or the kernel refuses
    """
    image = _folder(host, instance_uuid) / _IMAGE
    link = Path(device_link(instance_uuid))
    with lockutils.lock(f"novadocker-drive-{instance_uuid}"):
        device = _attached(image)
        if not device:
            image.stat()
            found, _ = processutils.execute("losetup", "--find", "--show", "--read-only", image)
            device = found.strip()
        for folder in (LINKS.parent, LINKS):
            with suppress(FileExistsError):
                folder.mkdir(0o755)
                folder.chmod(0o755)
        link.unlink(missing_ok=True)
        link.symlink_to(device)


@privsep.network_pctxt.entrypoint
def detach_device(host: str, instance_uuid: str) -> None:
    """Detach the loop device of an instance's config drive.

    Does nothing if no device is attached.

    :raises ValueError: an argument is malformed
    :raises ProcessExecutionError: the kernel refuses
    """
    image = _folder(host, instance_uuid) / _IMAGE
    with lockutils.lock(f"novadocker-drive-{instance_uuid}"):
        if device := _attached(image):
            processutils.execute("losetup", "--detach", device)
        Path(device_link(instance_uuid)).unlink(missing_ok=True)


def _attached(image: Path) -> str:
    """Return the path of the loop device that a file is attached to; empty if there is none."""
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        # The file vanishes if the device is detached at this moment.
        with suppress(FileNotFoundError):
            if entry.read_text().removesuffix("\n") == str(image):
                return f"/dev/{entry.parent.parent.name}"
    return ""


def _write(file: Path, content: bytes, owner: tuple[int, int]) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    with os.fdopen(descriptor, "wb") as output:
        output.write(content)
        os.fchown(descriptor, *owner)


def _folder(host: str, instance_uuid: str) -> Path:
    return FOLDER / arguments.text(_HOST, host) / arguments.instance_uuid(instance_uuid)


def _check_paths(paths: Iterable[str]) -> None:
    """Raise ValueError unless all are relative paths and none is a directory of another one."""
    folders = set()
    for path in paths:
        *above, _ = names = arguments.text(_PATH, path).split("/")
        for name in names:
            arguments.text(_NAME, name)
        folders |= {"/".join(above[: end + 1]) for end in range(len(above))}
    if not folders.isdisjoint(paths):
        raise ValueError("a path in the config drive is a file and a directory")


def _delete(folder: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
