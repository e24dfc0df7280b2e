# SPDX-License-Identifier: Apache-2.0
"""Privileged entry points: the config drives of this host, below /var/lib/novadocker.

They hold passwords, so their folder is root's. They must outlive a restart of the host: a container
that finds no source of its mount does not start. One that is a device, too, is a loop device that
is attached before each start; the engine finds it by a link below /run.
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
# with the names of folders before that of the file
_PATH = re.compile(r"([^/]+/){0,8}[^/]+")
_IMAGE = "config-2.iso"
_MOST_FILES = 1000
_MOST_BYTES = 32 << 20
# the last stands for none
_OWNERS = range((1 << 32) - 1)


def folder(host: str, instance_uuid: str) -> str:
    """Return the folder with all of an instance's config drive.

    :param host: of nova-compute, since several of them may share a machine
    :raises ValueError: an argument is not well-formed
    """
    return str(_folder(host, instance_uuid))


def files_folder(host: str, instance_uuid: str) -> str:
    """Return the folder with the files of an instance's config drive.

    :param host: of nova-compute, since several of them may share a machine
    :raises ValueError: an argument is not well-formed
    """
    return str(_folder(host, instance_uuid) / "files")


def device_link(instance_uuid: str) -> str:
    """Return the link that leads to the device of an instance's config drive while it runs.

    :raises ValueError: that is no UUID
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
    """Make an instance's config drive, in place of an older one.

    :param files: contents by relative path
    :param owner: user and group who are root in the container
    :param image: of the block device; empty if there is none
    :raises ValueError: an argument is not well-formed, or there is too much of it
    """
    target = _folder(host, instance_uuid)
    arguments.mapping(files)
    user, group = (arguments.number(_OWNERS, number) for number in arguments.items(owner))
    contents = [arguments.data(_MOST_BYTES, content) for content in (*files.values(), image)]
    if len(files) > _MOST_FILES or sum(map(len, contents)) > _MOST_BYTES:
        raise ValueError("there is too much for a config drive")
    _check_paths(files)
    target.parent.mkdir(0o700, parents=True, exist_ok=True)
    # whole or not at all
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
    """Remove an instance's config drive; absent is fine. Detach its device before."""
    _delete(_folder(host, instance_uuid))


@privsep.network_pctxt.entrypoint
def attach_device(host: str, instance_uuid: str) -> None:
    """Attach the image of an instance's config drive to a loop device, unless it is.

    :raises OSError: there is no image
    :raises ProcessExecutionError: there is no free loop device, or the kernel refuses
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
    """Give back the loop device of an instance's config drive; absent is fine."""
    image = _folder(host, instance_uuid) / _IMAGE
    with lockutils.lock(f"novadocker-drive-{instance_uuid}"):
        if device := _attached(image):
            processutils.execute("losetup", "--detach", device)
        Path(device_link(instance_uuid)).unlink(missing_ok=True)


def _attached(image: Path) -> str:
    """Return the loop device of a file, or nothing."""
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        # one that is detached just now
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
    """Raise ValueError unless all are relative paths, none of them a folder of another."""
    folders = set()
    for path in paths:
        *above, _ = names = arguments.text(_PATH, path).split("/")
        for name in names:
            arguments.text(_NAME, name)
        folders |= {"/".join(above[: end + 1]) for end in range(len(above))}
    if not folders.isdisjoint(paths):
        raise ValueError("a file of a config drive is a folder, too")


def _delete(folder: Path) -> None:
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
