# SPDX-License-Identifier: Apache-2.0
"""Adding a layer to an image, and merging layers to keep their number below the engine's limit.

A layer marks the files that it deletes by entries that are called whiteouts:
https://github.com/opencontainers/image-spec/blob/main/layer.md
"""

import copy
import functools
import json
import os
import posixpath
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from novadocker.linux.pipes import write_all
from novadocker.privsep.storage.layer_diff import OPAQUE, WHITEOUT
from novadocker.virt.docker.images.archive import ArchivedImage, Layer
from novadocker.virt.docker.images.regions import ArchiveError, Region
from novadocker.virt.docker.images.tar_reader import entries

SNAPSHOT = "novadocker snapshot"
"""Value of ``created_by`` in an image's history for the layer of a snapshot."""

MAX_DEPTH = 120
"""Largest number of layers of a snapshot, below the engine's limit (125 or 127)."""

_MAX_ENTRIES = 2_000_000
# Each of these files is kept in memory.
_MAX_HIDDEN_FILES = 50_000
_ATTRIBUTE = "SCHILY.xattr."


def on_top(
    base: ArchivedImage, layer: Layer, depth: int, new_file: Callable[[], int]
) -> ArchivedImage:
    """Return the image with the layer of a snapshot on top, and an otherwise equal configuration.

    If there are more than ``depth`` layers of snapshots, they are merged into one. If the image
    still has too many layers for the engine, all layers are merged into one.

    :param new_file: returns the file descriptor of an empty file, which the caller closes
    :raises ArchiveError: a layer is malformed
    """
    image = _image(json.loads(base.config), (*base.layers, layer))
    kept = count_kept(base, depth)
    return image if kept == len(base.layers) else squash(image, kept, new_file)


def count_kept(base: ArchivedImage, depth: int) -> int:
    """Return the number of the lowest layers of an image that ``on_top`` does not merge."""
    count = _count_snapshots(json.loads(base.config))
    if count < depth and len(base.layers) < MAX_DEPTH:
        return len(base.layers)
    kept = len(base.layers) - count
    return kept if kept < MAX_DEPTH else 0


def squash(image: ArchivedImage, kept: int, new_file: Callable[[], int]) -> ArchivedImage:
    """Return the image with all layers above the lowest ``kept`` merged into one.

    :param new_file: as for ``on_top``
    :raises ArchiveError: a layer is malformed
    """
    config = json.loads(image.config)
    history = _history(config, len(image.layers))
    gone = len(image.layers) - kept
    while gone and history:
        gone -= not history.pop().get("empty_layer")
    merged = [_searchable(layer, new_file) for layer in image.layers[kept:]]
    layer = merge(merged, new_file(), whole=kept == 0)
    return _image({**config, "history": history}, (*image.layers[:kept], layer))


def _image(config: Mapping[str, Any], layers: tuple[Layer, ...]) -> ArchivedImage:
    """Return an image from the configuration without the last layer, which is a snapshot's."""
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{layer.digest}" for layer in layers]}
    history = [*_history(config, len(layers) - 1), {"created_by": SNAPSHOT}]
    return ArchivedImage(
        json.dumps({**config, "rootfs": rootfs, "history": history}).encode(), layers
    )


def _history(config: Mapping[str, Any], layers: int) -> list[dict[str, Any]]:
    """Return a configuration's history; an empty one unless it has an entry for each layer."""
    history = config.get("history")
    if (
        isinstance(history, list)
        and all(isinstance(entry, dict) for entry in history)
        and sum(not entry.get("empty_layer") for entry in history) == layers
    ):
        return list(history)
    return [{"created_by": ""}] * layers


def _count_snapshots(config: Mapping[str, Any]) -> int:
    """Return the number of the highest layers of an image that are snapshots."""
    history = _history(config, len(config["rootfs"]["diff_ids"]))
    authors = [entry.get("created_by") for entry in reversed(history)]
    return next((number for number, name in enumerate(authors) if name != SNAPSHOT), len(authors))


# -- merging layers -----------------------------------------------------------------------------


def merge(layers: Sequence[Region], file: int, whole: bool = False) -> Layer:
    """Write one layer that has the effect of several layers.

    :param layers: the lowest layer first
    :param file: file descriptor of an empty file, which receives the layer
    :param whole: True if there are no layers below, so that the layer needs no whiteouts
    :raises ArchiveError: a layer is malformed
    """
    written = _Merged(whole)
    with os.fdopen(os.dup(file), "wb") as output:
        for layer in reversed(layers):
            try:
                for piece in written.add(layer):
                    output.write(piece)
            except tarfile.TarError as error:
                raise ArchiveError(f"a layer is damaged: {ascii(str(error))[:100]}") from error
        output.write(bytes(2 * tarfile.BLOCKSIZE))
    content = Region(file, 0, os.fstat(file).st_size)
    return Layer(content.digest(), content)


def _searchable(layer: Layer, new_file: Callable[[], int]) -> Region:
    """Return a layer's content as a region of a file.

    :raises ArchiveError: the layer does not match its digest
    """
    if isinstance(layer.content, Region):
        return layer.content
    file = new_file()
    for chunk in layer.content.chunks():
        write_all(file, chunk)
    content = Region(file, 0, layer.content.size)
    if content.digest() != layer.digest:
        raise ArchiveError(f"a layer does not match its digest sha256:{layer.digest}")
    return content


@dataclass
class _Merged:
    """The state of a merge, which proceeds from the highest layer down.

    :ivar kinds: types of the written entries by path
    :ivar gone: paths that are deleted from the layers below
    :ivar opaque: directories whose content is deleted from the layers below
    """

    whole: bool
    kinds: dict[str, bytes] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    opaque: set[str] = field(default_factory=set)

    def add(self, content: Region) -> Iterator[bytes]:
        """Yield the part of the merged layer that comes from one layer.

        The whiteouts of the layer apply to the layers below it and not to the layer itself.
        """
        above = _Merged(self.whole, dict(self.kinds), set(self.gone), set(self.opaque))
        hidden = _HiddenFiles(content, above)
        for entry in entries(content):
            name = _normal(entry.name)
            folder, last = posixpath.split(name)
            if last == OPAQUE:
                yield from self._hide_below(above, folder)
            elif last.startswith(WHITEOUT):
                yield from self._remove(above, posixpath.join(folder, last[len(WHITEOUT) :]))
            elif above.shows(name):
                yield from self._write(entry, name, content, above, hidden)
            elif above.kinds.get(name) == tarfile.DIRTYPE and not entry.isdir():
                # This entry would hide a directory below, but a directory above replaces it.
                yield from self._hide_below(above, name)
        if len(self.kinds) + len(self.gone) > _MAX_ENTRIES:
            raise ArchiveError(f"it has more than {_MAX_ENTRIES} files to merge")

    def shows(self, name: str) -> bool:
        """Return True if a path of a layer below is visible."""
        return name not in self.kinds and not self._hidden(name)

    def _hidden(self, name: str) -> bool:
        if name in self.gone:
            return True
        while name:
            name = posixpath.dirname(name)
            if name in self.gone or name in self.opaque:
                return True
            if self.kinds.get(name, tarfile.DIRTYPE) != tarfile.DIRTYPE:
                return True
        return False

    def _write(
        self,
        entry: tarfile.TarInfo,
        name: str,
        content: Region,
        above: "_Merged",
        hidden: "_HiddenFiles",
    ) -> Iterator[bytes]:
        target = _normal(entry.linkname) if entry.islnk() else ""
        if target and not above.shows(target):
            # The file itself is hidden, so its first visible link becomes the file.
            entry = entry if target in hidden.moved else hidden.find(target)
            target = hidden.moved.setdefault(target, name)
            target = "" if target == name else target
        self.kinds[name] = entry.type
        written = copy.copy(entry)
        written.name = name
        written.linkname = target or entry.linkname
        written.type = tarfile.REGTYPE if entry.isreg() else entry.type
        # Other records repeat the fields of the entry and would override them.
        written.pax_headers = {
            key: value for key, value in entry.pax_headers.items() if key.startswith(_ATTRIBUTE)
        }
        yield written.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        if entry.isreg():
            yield from Region(
                content.descriptor, content.offset + entry.offset_data, entry.size
            ).chunks()
            yield bytes(-entry.size % tarfile.BLOCKSIZE)

    def _remove(self, above: "_Merged", name: str) -> Iterator[bytes]:
        if above._hidden(name):
            return
        kind = above.kinds.get(name)
        if kind == tarfile.DIRTYPE:
            yield from self._hide_below(above, name)
        elif kind is None:
            self.gone.add(name)
            if not self.whole:
                folder, last = posixpath.split(name)
                yield _marker(posixpath.join(folder, WHITEOUT + last))

    def _hide_below(self, above: "_Merged", folder: str) -> Iterator[bytes]:
        if folder in self.opaque or above._hidden(folder):
            return
        self.opaque.add(folder)
        if not self.whole:
            yield _marker(posixpath.join(folder, OPAQUE))


@dataclass
class _HiddenFiles:
    """Files of a layer whose first name is hidden while a hard link to them is visible.

    :ivar content: of the layer
    :ivar above: state of the merge before the layer
    :ivar moved: first visible name by the hidden name
    """

    content: Region
    above: _Merged
    moved: dict[str, str] = field(default_factory=dict)

    def find(self, name: str) -> tarfile.TarInfo:
        """Return the entry of a file; ArchiveError if the layer does not have the file."""
        if name not in self._originals:
            raise ArchiveError(f"a layer has a hard link to {ascii(name)[:80]}, which it lacks")
        return self._originals[name]

    @functools.cached_property
    def _originals(self) -> dict[str, tarfile.TarInfo]:
        names = {
            _normal(entry.linkname)
            for entry in entries(self.content)
            if entry.islnk() and not self.above.shows(_normal(entry.linkname))
        }
        if len(names) > _MAX_HIDDEN_FILES:
            raise ArchiveError(
                f"a layer has more than {_MAX_HIDDEN_FILES} hidden files with visible hard links"
            )
        found: dict[str, tarfile.TarInfo] = {}
        for entry in entries(self.content):
            if not entry.islnk() and (name := _normal(entry.name)) in names:
                found.setdefault(name, entry)
        return found


def _normal(name: str) -> str:
    return posixpath.normpath(name).lstrip("/")


def _marker(name: str) -> bytes:
    return tarfile.TarInfo(name).tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
