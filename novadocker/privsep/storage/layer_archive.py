# SPDX-License-Identifier: Apache-2.0
"""Privileged: an image's configuration and layers as an engine with overlay2 keeps them.

``docker save`` copies all of an image before it sends the first byte. Here a layer's archive comes
straight from where its files are. The engine keeps all of it but the files' contents
(https://github.com/vbatts/tar-split), so that it can be made again bit by bit. Whoever reads it
compares the digest, as with any other archive.
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

from novadocker import naming, privsep
from novadocker.linux import openat
from novadocker.linux.pipes import write_all
from novadocker.privsep import arguments

_CACHE_ID = re.compile(r"[0-9a-z]{25,64}")
_LARGEST_CONFIG = 4 << 20
# what is between the contents of two files is some KiB; a tenant can make it any size
_LONGEST_LINE = 16 << 20
_COPY_BYTES = 1 << 20

# of an entry, by tar-split: the content of a file, or else bytes of the archive
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
    :raises ValueError: an argument is not well-formed
    :raises OSError: there is none, or it has more than 4 MiB
    """
    name = arguments.text(naming.SHA256, image)
    path = Path(arguments.folder(data_root), "image/overlay2/imagedb/content/sha256", name)
    with path.open("rb") as source:
        content = source.read(_LARGEST_CONFIG + 1)
    if len(content) > _LARGEST_CONFIG:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return content


@privsep.storage_pctxt.entrypoint
def measure_layer(data_root: str, chain: str) -> int:
    """Return how many bytes a layer's archive has.

    :param chain: the digest of the layer and all below it, in hex:
        https://github.com/opencontainers/image-spec/blob/main/config.md#layer-chainid
    :raises ValueError: an argument is not well-formed
    :raises OSError: there is no such layer, or it can't be read
    """
    kept = _kept(data_root, chain)
    return sum(len(part) if isinstance(part, bytes) else part.size for part in _parts(kept))


@privsep.storage_pctxt.entrypoint
def write_layer(data_root: str, chain: str, target: tuple[int, int]) -> int:
    """Write a layer's archive into a pipe; return how many bytes.

    :param chain: as for ``measure_layer``
    :param target: a process, and its descriptor of the pipe
    :raises ValueError: an argument is not well-formed
    :raises OSError: there is no such layer, it can't be read, or nobody reads the pipe
    """
    kept = _kept(data_root, chain)
    written = 0
    with open(arguments.open_file(target), "wb", buffering=0) as pipe, _files(kept) as root:
        for part in _parts(kept):
            if isinstance(part, bytes):
                write_all(pipe.fileno(), part)
                written += len(part)
            else:
                _copy(root, part, pipe.fileno())
                written += part.size
    return written


def _kept(data_root: object, chain: object) -> Path:
    name = arguments.text(naming.SHA256, chain)
    return Path(arguments.folder(data_root), "image/overlay2/layerdb/sha256", name)


@contextmanager
def _files(kept: Path) -> Iterator[int]:
    """Open the root folder of a layer's files."""
    folder = arguments.text(_CACHE_ID, (kept / "cache-id").read_text())
    root = os.open(kept.parents[4] / "overlay2" / folder / "diff", os.O_PATH | os.O_DIRECTORY)
    try:
        yield root
    finally:
        os.close(root)


def _parts(kept: Path) -> Iterator[bytes | _File]:
    """Yield what a layer's archive is made of: bytes, or the content of a file.

    :raises OSError: the engine's record of it is damaged, or has lines that are too long
    """
    try:
        with gzip.open(kept / "tar-split.json.gz") as lines:
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
        # names that are no UTF-8 are kept otherwise
        raw = entry.get("name_raw")
        name = os.fsdecode(base64.b64decode(raw)) if raw else str(entry["name"])
        return _File(name, int(entry.get("size", 0)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
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
