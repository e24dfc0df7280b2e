# SPDX-License-Identifier: Apache-2.0
"""Privileged: the changes of a container in its file system, as one layer of an image.

The engine's own commit omits volumes, and all extended attributes but one. This module reads the
layer from the directories of the storage driver overlay2, while the container is frozen. Deletions
become whiteouts (https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts).
"""

import errno
import os
import re
import stat
import tarfile
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import IO

from novadocker import engine_paths, privsep
from novadocker.privsep import arguments
from novadocker.privsep.storage import sparse_files

WHITEOUT = ".wh."
"""Prefix of the name of a layer's entry that deletes a name of the layers below."""

OPAQUE = ".wh..wh..opq"
"""Name of a layer's entry that hides what the layers below have in its directory."""

# Paths that every snapshot omits, because the driver writes the files anew at each first start.
INJECTED = frozenset(
    {"etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/machine-id", "var/lib/dbus/machine-id"}
)

_OVERLAY_FOLDER = re.compile(engine_paths.LAYER_PATH)
_VOLUME_FOLDER = re.compile(engine_paths.VOLUME_PATH)

# Path of a volume in a container.
_PATH = re.compile(r"/[^\0]*")
_SIZES = range(1 << 62)

# Prefix of the extended attributes with the state of overlayfs.
_OVERLAY_ATTRIBUTE = "trusted.overlay."
_UNREADABLE = ("trusted.overlay.redirect", "trusted.overlay.metacopy")
_MAX_LINKS = 40
_COPY_BYTES = 1 << 30


@privsep.storage_pctxt.entrypoint
def start() -> None:
    """Start the privileged process, so that the next call does not wait for it. Idempotent."""


@privsep.storage_pctxt.entrypoint
def write_layer(
    upper: str,
    lowers: Sequence[str],
    volumes: Mapping[str, str],
    target: tuple[int, int],
    limit: int,
) -> None:
    """Write the layer, as a plain tar archive, into a file that the caller has open.

    :param upper: directory with the changes of the container
    :param lowers: directories of its image's layers, from the highest
    :param volumes: directory of each volume by its path in the container; their files are in the
        layer as ordinary files
    :param target: a process id, and the process's file descriptor of an empty file
    :param limit: maximal size of the layer in bytes
    :raises ValueError: an argument is malformed
    :raises OSError: a directory cannot be read, or the layer is larger than ``limit`` (EFBIG)
    """
    folders = [_folder(_OVERLAY_FOLDER, folder) for folder in (upper, *arguments.items(lowers))]
    places = {
        arguments.text(_PATH, path): _folder(_VOLUME_FOLDER, folder)
        for path, folder in arguments.mapping(volumes).items()
    }
    room = arguments.number(_SIZES, limit)
    with open(arguments.open_file(target), "r+b", buffering=0) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size or status.st_nlink:
            raise ValueError("the target is not an empty file without a name")
        _Layer(file, room).write([Path(folder) for folder in folders], places)


def _folder(pattern: re.Pattern[str], value: object) -> str:
    return arguments.without_detours(arguments.text(pattern, value))


class _Layer:
    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._descriptor = file.fileno()
        self._left = limit
        self._written: set[str] = set()

    def write(self, view: Sequence[Path], volumes: Mapping[str, str]) -> None:
        """Write the highest directory of a view, then the volumes."""
        places = {_resolve(view, path): Path(folder) for path, folder in volumes.items()}
        self._write_tree(view[0], "", places.keys() | INJECTED)
        for place, folder in sorted(places.items()):
            self._write_parents(view, place)
            self._write_entry(folder, place, {})
            self._write_header(tarfile.TarInfo(f"{place}/{OPAQUE}"))
            self._write_tree(folder, place, places.keys())
        self._write_bytes(bytes(2 * tarfile.BLOCKSIZE))

    def _write_tree(self, top: Path, place: str, excluded: Set[str]) -> None:
        links: dict[tuple[int, int], str] = {}
        pending = [(top, place)]
        while pending:
            folder, name = pending.pop()
            if name == place == "":
                self._write_entry(folder, ".", links)
            for child in sorted(os.listdir(folder)):
                inner = f"{name}/{child}" if name else child
                if inner in excluded:
                    continue
                if self._write_entry(folder / child, inner, links):
                    pending.append((folder / child, inner))

    def _write_parents(self, view: Sequence[Path], place: str) -> None:
        words = place.split("/")
        for end in range(1, len(words)):
            parent = "/".join(words[:end])
            found = _find(view, parent)
            if found is not None and parent not in self._written:
                self._write_entry(found, parent, {}, opaque=False)

    def _write_entry(
        self, path: Path, name: str, links: dict[tuple[int, int], str], opaque: bool = True
    ) -> bool:
        """Write one entry; return True if it is a directory."""
        status = os.lstat(path)
        kind = stat.S_IFMT(status.st_mode)
        if _is_whiteout(status):
            folder, _, last = name.rpartition("/")
            self._write_header(tarfile.TarInfo(f"{folder}/{WHITEOUT}{last}".lstrip("/")))
            return False
        if kind == stat.S_IFSOCK:
            # A socket is useless without the process that listens on it.
            return False
        entry = _entry(name, status, kind)
        attributes = _attributes(path)
        # Also for a hard link: the engine sets its owner, which drops the file's capabilities.
        entry.pax_headers = {
            f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape")
            for key, value in attributes.items()
            if not key.startswith(_OVERLAY_ATTRIBUTE)
        }
        if sparse_files.worth_a_mark(status, frozenset(attributes)):
            entry.pax_headers[f"SCHILY.xattr.{sparse_files.MARK}"] = "1"
        if kind == stat.S_IFLNK:
            entry.linkname = os.readlink(path)
        elif kind != stat.S_IFDIR and status.st_nlink > 1:
            first = links.setdefault((status.st_dev, status.st_ino), name)
            if first != name:
                entry.type, entry.size, entry.linkname = tarfile.LNKTYPE, 0, first
        self._write_header(entry)
        if entry.isreg():
            self._write_content(path, status.st_size)
        self._written.add(name)
        if opaque and attributes.get("trusted.overlay.opaque") == b"y":
            self._write_header(tarfile.TarInfo(f"{name}/{OPAQUE}"))
        return kind == stat.S_IFDIR

    def _write_header(self, entry: tarfile.TarInfo) -> None:
        self._write_bytes(entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))

    def _write_bytes(self, content: bytes) -> None:
        self._take(len(content))
        if os.write(self._descriptor, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _write_content(self, path: Path, size: int) -> None:
        """Copy the ranges of a file that have data, so that holes take neither time nor space."""
        padded = size + -size % tarfile.BLOCKSIZE
        self._take(padded)
        start = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            for begin, end in sparse_files.data_ranges(source, size):
                os.lseek(self._descriptor, start + begin, os.SEEK_SET)
                while begin < end:
                    count = os.sendfile(
                        self._descriptor, source, begin, min(end - begin, _COPY_BYTES)
                    )
                    if not count:
                        raise OSError(errno.EIO, "a file became shorter while it was read")
                    begin += count
        finally:
            os.close(source)
        os.ftruncate(self._descriptor, start + padded)
        os.lseek(self._descriptor, start + padded, os.SEEK_SET)

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise OSError(errno.EFBIG, "there is no room for the changes of the container")


def _entry(name: str, status: os.stat_result, kind: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.mode = stat.S_IMODE(status.st_mode)
    entry.uid, entry.gid, entry.mtime = status.st_uid, status.st_gid, int(status.st_mtime)
    entry.type = {
        stat.S_IFDIR: tarfile.DIRTYPE,
        stat.S_IFLNK: tarfile.SYMTYPE,
        stat.S_IFIFO: tarfile.FIFOTYPE,
        stat.S_IFCHR: tarfile.CHRTYPE,
        stat.S_IFBLK: tarfile.BLKTYPE,
    }.get(kind, tarfile.REGTYPE)
    if kind == stat.S_IFREG:
        entry.size = status.st_size
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        entry.devmajor, entry.devminor = os.major(status.st_rdev), os.minor(status.st_rdev)
    return entry


def _attributes(path: Path) -> dict[str, bytes]:
    found = {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
    }
    if any(name in found for name in _UNREADABLE):
        raise OSError(errno.EOPNOTSUPP, "overlayfs redirects or metacopies, which are unsupported")
    return found


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _find(view: Sequence[Path], name: str) -> Path | None:
    """Return the path of a name in the highest layer that has it; None if it is deleted there."""
    for folder in view:
        path = folder / name
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        return None if _is_whiteout(status) else path
    return None


def _resolve(view: Sequence[Path], path: str) -> str:
    """Return a path with all symbolic links resolved within the view, without a leading slash."""
    place: list[str] = []
    left = path.split("/")
    links = 0
    while left:
        word = left.pop(0)
        if word in ("", "."):
            continue
        if word == "..":
            place = place[:-1]
            continue
        found = _find(view, "/".join([*place, word]))
        if found is None or not found.is_symlink():
            place.append(word)
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(found)
        place = [] if target.startswith("/") else place
        left = target.split("/") + left
    return "/".join(place)
