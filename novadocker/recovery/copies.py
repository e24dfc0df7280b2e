# SPDX-License-Identifier: Apache-2.0
"""Copies of a mounted file system as a directory, a tar archive or an image archive.

GNU tar reads the files, because it keeps hard links, sparse files, extended attributes, ACLs and
device nodes. The server may run and replace directories by links to those of the host meanwhile.
tar opens each name below a descriptor and never through a link (``O_NOFOLLOW``; on its way back up
it compares device and inode), and the mount has no device nodes (``nodev``).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from novadocker.recovery import progress
from novadocker.recovery.dataroot import RecoveryError

_CHUNK = 1 << 20
_END_SECONDS = 60
# useradd(8) creates ranges of this size in /etc/subuid.
_IDS = 1 << 16
# tar exits with this status if files changed, shrank or were deleted while it read them.
_CHANGED = 1
_FIDELITY = ("--numeric-owner", "--xattrs", "--xattrs-include=*", "--acls")

# The keys of a container's configuration that an image's configuration has, too.
_IMAGE_KEYS = (
    *("User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels"),
    *("StopSignal", "Healthcheck", "Shell", "OnBuild", "ArgsEscaped"),
)
_OWN_LABELS = "org.openstack.nova."


def copy_folder(source: Path, target: Path) -> list[str]:
    """Copy a mounted file system into an empty directory.

    :param target: the directory; created if it does not exist
    :returns: a line for each file that changed while it was read, because the server runs
    :raises RecoveryError: the directory is not empty, or a file can't be read or written
    """
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise RecoveryError(f"{target} is not empty")
    changed: list[str] = []
    command = ["tar", "--extract", *_FIDELITY, "--same-permissions", "--directory", str(target)]
    with (
        tempfile.TemporaryFile() as messages,
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=messages) as extracting,
    ):
        assert extracting.stdin
        # If the disk is full, tar exits, and _end raises its message.
        with suppress(BrokenPipeError):
            for chunk in _archived(source, f"to {target}", changed):
                extracting.stdin.write(chunk)
            extracting.stdin.close()
        _end(extracting, messages)
    return changed


def write_tar(source: Path, target: Path) -> list[str]:
    """Write a mounted file system as a tar archive. The file appears when it is complete.

    :returns: like ``copy_folder``
    :raises RecoveryError: the file exists, or a file can't be read or written
    """
    changed: list[str] = []
    with _new_file(target) as output:
        for chunk in _archived(source, f"to {target}", changed):
            output.write(chunk)
    return changed


def write_image(
    source: Path,
    target: Path,
    image: Mapping[str, Any],
    container: Mapping[str, Any],
    first_ids: tuple[int, int] = (0, 0),
) -> list[str]:
    """Write a mounted file system as an archive of an image with one layer, for Glance.

    :param image: configuration of the image that the server was booted from
    :param container: configuration of the container, which overrides the image's
    :param first_ids: ids on the disk of the user and the group that are root in the image
    :returns: like ``copy_folder``
    :raises RecoveryError: the file exists, or a file can't be read or written
    """
    changed: list[str] = []
    with (
        _new_file(target) as output,
        tempfile.TemporaryFile(dir=target.parent) as layer,
        tarfile.open(fileobj=output, mode="w") as archive,
        _owners(first_ids) as owners,
    ):
        digest = hashlib.sha256()
        for chunk in _archived(source, f"to {target}", changed, owners):
            digest.update(chunk)
            layer.write(chunk)
        size = layer.tell()
        layer.seek(0)
        diff_id = digest.hexdigest()
        config = json.dumps(image_config(image, container, f"sha256:{diff_id}")).encode()
        name = f"{hashlib.sha256(config).hexdigest()}.json"
        manifest = [{"Config": name, "RepoTags": None, "Layers": [f"{diff_id}/layer.tar"]}]
        _add(archive, name, io.BytesIO(config), len(config))
        _add(archive, f"{diff_id}/layer.tar", layer, size)
        text = json.dumps(manifest).encode()
        _add(archive, "manifest.json", io.BytesIO(text), len(text))
    return changed


def image_config(
    image: Mapping[str, Any], container: Mapping[str, Any], diff_id: str
) -> dict[str, Any]:
    """Return the configuration of an image with one layer. Pure.

    The driver's labels are left out, because they belong to the server and not to its image.
    """
    own = {key: container[key] for key in _IMAGE_KEYS if container.get(key)}
    config = {**(image.get("config") or {}), **own}
    labels = config.get("Labels") or {}
    config["Labels"] = {
        name: value for name, value in labels.items() if not name.startswith(_OWN_LABELS)
    }
    return {
        "architecture": image["architecture"],
        "os": image["os"],
        **({"variant": image["variant"]} if image.get("variant") else {}),
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created_by": "novadocker-recover"}],
    }


@contextmanager
def _owners(first_ids: tuple[int, int]) -> Iterator[Sequence[str]]:
    """Yield the options that make tar map owners on the disk to those inside the server."""
    if first_ids == (0, 0):
        yield ()
        return
    with ExitStack() as files:
        options = []
        for name, first in zip(("owner", "group"), first_ids, strict=True):
            table = files.enter_context(tempfile.NamedTemporaryFile("w"))
            table.writelines(f"+{first + number} +{number}\n" for number in range(_IDS))
            table.flush()
            options.append(f"--{name}-map={table.name}")
        yield options


def _archived(
    source: Path, what: str, changed: list[str], options: Sequence[str] = ()
) -> Iterator[bytes]:
    """Yield a directory as a tar archive.

    :param changed: receives tar's messages about files that changed while it read them
    :raises RecoveryError: a file can't be read
    """
    # "." is passed, because the names of all entries may exceed the limit of arguments. Sockets are
    # left out without a warning, because they are useless in a copy.
    command = [
        *("tar", "--create", "--format=posix", "--sparse", *_FIDELITY),
        *(*options, "--warning=no-file-ignored", "--directory", str(source), "."),
    ]
    with (
        # Messages go to a file, because tar would block on a pipe that is not read meanwhile.
        tempfile.TemporaryFile() as messages,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages) as archiving,
    ):
        assert archiving.stdout
        chunks = iter(lambda: archiving.stdout.read(_CHUNK), b"")  # type: ignore[union-attr]
        yield from progress.shown(chunks, progress.Bar(progress.used_bytes(source), what))
        changed += _end(archiving, messages, allowed=_CHANGED)


def _end(process: subprocess.Popen[bytes], messages: IO[bytes], allowed: int = 0) -> list[str]:
    """Wait for the end of tar. Return its messages if it exited with the status ``allowed``.

    :param messages: file with tar's messages
    :raises RecoveryError: tar exited with a status other than 0 and ``allowed``
    """
    code = process.wait(_END_SECONDS)
    messages.seek(0)
    lines = messages.read().decode(errors="replace").strip().splitlines()
    if code not in (0, allowed):
        raise RecoveryError(lines[-1] if lines else f"tar failed with exit status {code}")
    return lines if code else []


@contextmanager
def _new_file(target: Path) -> Iterator[IO[bytes]]:
    # The name of the temporary file is fixed, so that it detects another copy to the same file.
    if target.exists():
        raise RecoveryError(f"{target} already exists")
    part = target.with_name(f"{target.name}.part")
    try:
        with part.open("xb") as output:
            os.fchmod(output.fileno(), 0o600)
            yield output
        part.rename(target)
    except FileExistsError as error:
        raise RecoveryError(
            f"{part} already exists: another copy runs, or was interrupted"
        ) from error
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RecoveryError(str(error)) from error
        raise


def _add(archive: tarfile.TarFile, name: str, content: IO[bytes], size: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    archive.addfile(entry, content)
