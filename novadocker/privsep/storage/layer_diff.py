# SPDX-License-Identifier: Apache-2.0
"""Privileged: the changes of a container in its file system, as one layer of an image.

The engine's own commit omits volumes, and all extended attributes but one. This module reads the
layer from the directories of the storage driver overlay2 or of containerd's overlayfs, while the
container is frozen. Because a stopped container is not frozen and may start, it follows no link
there all the same. Deletions become whiteouts
(https://github.com/opencontainers/image-spec/blob/main/layer.md#whiteouts).
"""

import errno
import os
import re
import stat
import tarfile
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager

from novadocker import engine_paths, privsep
from novadocker.linux import openat, walk
from novadocker.privsep import arguments
from novadocker.privsep.storage import callers, sparse_files

WHITEOUT = ".wh."
"""Prefix of the name of a layer's entry that deletes a name of the layers below."""

OPAQUE = ".wh..wh..opq"
"""Name of a layer's entry that hides what the layers below have in its directory."""

# Paths that every snapshot omits, because the driver writes the files anew at each first start.
INJECTED = frozenset(
    {"etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/machine-id", "var/lib/dbus/machine-id"}
)

_OVERLAY_FOLDER = re.compile(f"{engine_paths.LAYER_PATH}|{engine_paths.SNAPSHOT_PATH}")
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
    :raises PermissionError: users other than root can change the path of a directory
    :raises OSError: a directory cannot be read, or the layer is larger than ``limit`` (EFBIG)
    """
    folders = [_folder(_OVERLAY_FOLDER, folder) for folder in (upper, *arguments.items(lowers))]
    places = {
        arguments.text(_PATH, path): _folder(_VOLUME_FOLDER, folder)
        for path, folder in arguments.mapping(volumes).items()
    }
    room = arguments.number(_SIZES, limit)
    with callers.empty_file(arguments.open_file(target)) as file, ExitStack() as opened:
        view = [opened.enter_context(callers.opened(folder)) for folder in folders]
        tops = {
            path: opened.enter_context(callers.opened(folder)) for path, folder in places.items()
        }
        _Layer(file, room).write(view, tops)


def _folder(pattern: re.Pattern[str], value: object) -> str:
    return arguments.without_detours(arguments.text(pattern, value))


class _Layer:
    def __init__(self, file: int, limit: int) -> None:
        self._descriptor = file
        self._left = limit
        self._written: set[str] = set()

    def write(self, view: Sequence[int], volumes: Mapping[str, int]) -> None:
        """Write the highest directory of a view, then the volumes.

        :param view: descriptors of the directories
        :param volumes: descriptor of each volume's directory by its path in the container
        """
        places = {_resolve(view, path): folder for path, folder in volumes.items()}
        self._write_tree(view[0], "", places.keys() | INJECTED)
        for place, folder in sorted(places.items()):
            self._write_parents(view, place)
            self._write_entry(openat.Held(folder, os.fstat(folder)), place, {})
            self._write_header(tarfile.TarInfo(f"{place}/{OPAQUE}"))
            self._write_tree(folder, place, places.keys())
        self._write_bytes(bytes(2 * tarfile.BLOCKSIZE))

    def _write_tree(self, top: int, place: str, excluded: Set[str]) -> None:
        """Write a directory; the top itself only if it is that of the container."""
        links: dict[tuple[int, int], str] = {}
        prefix = f"{place}/" if place else ""
        for found in walk.Walk(top, skip=lambda path: prefix + path in excluded):
            if found.path or not place:
                with found.held() as file:
                    self._write_entry(file, prefix + found.path or ".", links)

    def _write_parents(self, view: Sequence[int], place: str) -> None:
        words = place.split("/")
        for end in range(1, len(words)):
            parent = "/".join(words[:end])
            if parent not in self._written:
                with _found(view, parent) as file:
                    if file is not None:
                        self._write_entry(file, parent, {}, opaque=False)

    def _write_entry(
        self,
        file: openat.Held,
        name: str,
        links: dict[tuple[int, int], str],
        opaque: bool = True,
    ) -> None:
        status = file.status
        kind = stat.S_IFMT(status.st_mode)
        if _is_whiteout(status):
            folder, _, last = name.rpartition("/")
            self._write_header(tarfile.TarInfo(f"{folder}/{WHITEOUT}{last}".lstrip("/")))
            return
        if kind == stat.S_IFSOCK:
            # A socket is useless without the process that listens on it.
            return
        entry = _entry(name, status, kind)
        attributes = _attributes(file)
        # Also for a hard link: the engine sets its owner, which drops the file's capabilities.
        entry.pax_headers = {
            f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape")
            for key, value in attributes.items()
            if not key.startswith(_OVERLAY_ATTRIBUTE)
        }
        if sparse_files.worth_a_mark(status, frozenset(attributes)):
            entry.pax_headers[f"SCHILY.xattr.{sparse_files.MARK}"] = "1"
        if kind == stat.S_IFLNK:
            entry.linkname = file.target()
        elif kind != stat.S_IFDIR and status.st_nlink > 1:
            first = links.setdefault((status.st_dev, status.st_ino), name)
            if first != name:
                entry.type, entry.size, entry.linkname = tarfile.LNKTYPE, 0, first
        self._write_header(entry)
        if entry.isreg():
            self._write_content(file)
        self._written.add(name)
        if opaque and attributes.get("trusted.overlay.opaque") == b"y":
            self._write_header(tarfile.TarInfo(f"{name}/{OPAQUE}"))

    def _write_header(self, entry: tarfile.TarInfo) -> None:
        self._write_bytes(entry.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))

    def _write_bytes(self, content: bytes) -> None:
        self._take(len(content))
        if os.write(self._descriptor, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _write_content(self, file: openat.Held) -> None:
        """Copy the ranges of a file that have data, so that holes take neither time nor space."""
        size = file.status.st_size
        padded = size + -size % tarfile.BLOCKSIZE
        self._take(padded)
        start = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        with file.opened() as source:
            for begin, end in sparse_files.data_ranges(source, size):
                os.lseek(self._descriptor, start + begin, os.SEEK_SET)
                while begin < end:
                    count = os.sendfile(
                        self._descriptor, source, begin, min(end - begin, _COPY_BYTES)
                    )
                    if not count:
                        raise OSError(errno.EIO, "a file became shorter while it was read")
                    begin += count
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


def _attributes(file: openat.Held) -> dict[str, bytes]:
    found = file.attributes()
    if any(name in found for name in _UNREADABLE):
        raise OSError(errno.EOPNOTSUPP, "overlayfs redirects or metacopies, which are unsupported")
    return found


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


@contextmanager
def _found(view: Sequence[int], name: str) -> Iterator[openat.Held | None]:
    """Hold the file of a name in the highest layer that has it; yield None if it is deleted."""
    with ExitStack() as stack:
        found = None
        for folder in view:
            try:
                found = stack.enter_context(openat.held(folder, name))
            except FileNotFoundError:
                continue
            except OSError as error:
                if not openat.shows_change(error):
                    raise
                # A file or a link in place of a directory hides the layers below.
            break
        yield None if found is None or _is_whiteout(found.status) else found


def _resolve(view: Sequence[int], path: str) -> str:
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
        with _found(view, "/".join([*place, word])) as found:
            if found is None or not stat.S_ISLNK(found.status.st_mode):
                place.append(word)
                continue
            target = found.target()
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        place = [] if target.startswith("/") else place
        left = target.split("/") + left
    return "/".join(place)
