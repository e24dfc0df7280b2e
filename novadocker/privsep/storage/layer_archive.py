# SPDX-License-Identifier: Apache-2.0
"""Privileged: an image's configuration and layers as an engine with overlay2 stores them.

``docker save`` copies a whole image before it sends the first byte. This module reads a layer's
archive from the layer's files. The engine stores everything of the archive except the contents of
the files (https://github.com/vbatts/tar-split), so the archive is reproduced bit by bit. Its reader
compares the digest, as for any other archive.
"""

import base64
import errno
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from novadocker import engine_paths, naming, privsep
from novadocker.linux import openat
from novadocker.linux.pipes import write_all
from novadocker.privsep import arguments
from novadocker.privsep.storage import callers

_CACHE_ID = re.compile(engine_paths.LAYER_ID)
_LONGEST_ID = 1024
# The engine's paths are relative to the descriptor of the data root.
_TOP = Path()
_LARGEST_CONFIG = 4 << 20
# A line has what is between the contents of two files: some KiB, but a tenant can make it any size.
_LONGEST_LINE = 16 << 20
_COPY_BYTES = 1 << 20
_DRIVER = "overlay2"

_MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError)

# Type of tar-split's entries for the content of a file; others have bytes of the archive.
_FILE = 1


@dataclass(frozen=True)
class _File:
    """A file whose content is a part of a layer's archive."""

    name: str
    size: int


@privsep.storage_pctxt.entrypoint
def read_config(data_root: str, image: str) -> bytes:
    """Return an image's configuration.

    :param image: SHA-256 of the configuration, in hex
    :raises ValueError: an argument is malformed
    :raises OSError: there is no such image, or its configuration has more than 4 MiB
    """
    name = arguments.text(naming.SHA256, image)
    path = engine_paths.image_config(_TOP, _DRIVER, name)
    with openat.trusted(arguments.folder(data_root)) as root, _open(root, path) as source:
        content = source.read(_LARGEST_CONFIG + 1)
    if len(content) > _LARGEST_CONFIG:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return content


@privsep.storage_pctxt.entrypoint
def measure_layer(data_root: str, chain: str) -> int:
    """Return the size of a layer's archive in bytes.

    :param chain: the digest of the layer and all below it, in hex:
        https://github.com/opencontainers/image-spec/blob/main/config.md#layer-chainid
    :raises ValueError: an argument is malformed
    :raises OSError: there is no such layer, or its record cannot be read
    """
    record = _record(chain)
    with openat.trusted(arguments.folder(data_root)) as root:
        parts = _parts(root, record)
        return sum(len(part) if isinstance(part, bytes) else part.size for part in parts)


@privsep.storage_pctxt.entrypoint
def write_layer(data_root: str, chain: str, target: tuple[int, int]) -> int:
    """Write a layer's archive into a pipe; return its size in bytes.

    :param chain: as for ``measure_layer``
    :param target: a process id, and the process's file descriptor of the pipe
    :raises ValueError: an argument is malformed
    :raises OSError: there is no such layer, the layer cannot be read, or the pipe has no reader
    """
    record, written = _record(chain), 0
    folder, end = arguments.folder(data_root), arguments.open_file(target)
    with (
        callers.pipe(end, os.O_WRONLY) as pipe,
        openat.trusted(folder) as root,
        _files(root, record) as files,
    ):
        for part in _parts(root, record):
            if isinstance(part, bytes):
                write_all(pipe, part)
                written += len(part)
            else:
                _copy(files, part, pipe)
                written += part.size
    return written


def _record(chain: object) -> Path:
    """Return the directory of the engine's record of a layer, relative to the data root."""
    return engine_paths.layer_record(_TOP, _DRIVER, arguments.text(naming.SHA256, chain))


def _open(root: int, path: Path) -> IO[bytes]:
    """Open a file of the engine; its data may be on several mounts."""
    return os.fdopen(openat.open_inside(root, str(path), os.O_RDONLY, mounts=True), "rb")


@contextmanager
def _files(root: int, record: Path) -> Iterator[int]:
    """Open the directory with a layer's files."""
    with _open(root, record / "cache-id") as source:
        layer = arguments.text(_CACHE_ID, source.read(_LONGEST_ID).decode("ascii"))
    path = str(engine_paths.overlay_files(_TOP, layer))
    files = openat.open_inside(root, path, os.O_PATH | os.O_DIRECTORY, mounts=True)
    try:
        yield files
    finally:
        os.close(files)


def _parts(root: int, record: Path) -> Iterator[bytes | _File]:
    """Yield the parts of a layer's archive: bytes, or a file whose content is the part.

    :raises OSError: the engine's record of the layer is damaged, or has a line that is too long
    """
    try:
        with _open(root, record / "tar-split.json.gz") as packed, gzip.open(packed) as lines:
            while line := lines.readline(_LONGEST_LINE):
                if not line.endswith(b"\n"):
                    raise OSError(
                        errno.EFBIG, "a layer has more between two files than is supported"
                    )
                yield _parse(line)
    except (EOFError, zlib.error) as error:
        raise OSError(errno.EIO, f"the record of a layer is damaged: {error}") from error


def _parse(line: bytes) -> bytes | _File:
    try:
        entry = json.loads(line)
        if entry["type"] != _FILE:
            return base64.b64decode(entry["payload"])
        # Names that are not UTF-8 have a field of their own.
        raw = entry.get("name_raw")
        name = os.fsdecode(base64.b64decode(raw)) if raw else str(entry["name"])
        return _File(name, int(entry.get("size", 0)))
    except _MALFORMED as error:
        raise OSError(errno.EIO, "the record of a layer is damaged") from error


def _copy(root: int, file: _File, pipe: int) -> None:
    if not file.size:
        return
    with openat.open_regular(root, file.name) as source:
        position = 0
        while position < file.size:
            count = os.sendfile(pipe, source, position, min(file.size - position, _COPY_BYTES))
            if not count:
                raise OSError(errno.EIO, "a file of a layer is shorter than it was", file.name)
            position += count
