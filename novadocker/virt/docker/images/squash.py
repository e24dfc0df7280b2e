# SPDX-License-Identifier: Apache-2.0
"""Layers put onto images, and many layers made one, so that an image never has too many.

What a layer deletes is said by entries of its own, "whiteouts":
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
from novadocker.virt.docker.images.archive import ArchivedImage, Layer
from novadocker.virt.docker.images.regions import ArchiveError, Region, RegionFile

SNAPSHOT = "novadocker snapshot"
"""What the history of an image says of a layer that is a snapshot."""

MAX_DEPTH = 120
"""So many layers the engine stacks with a reserve (its own limit is 125, or 127)."""

_MAX_ENTRIES = 2_000_000
# each is kept in memory
_MAX_HIDDEN_FILES = 50_000
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_ATTRIBUTE = "SCHILY.xattr."


def on_top(
    base: ArchivedImage, layer: Layer, depth: int, new_file: Callable[[], int]
) -> ArchivedImage:
    """Return an image with one more layer, a snapshot's, and the configuration else kept.

    With more than ``depth`` layers of snapshots these become one; all do if they are too many for
    the engine even then.

    :param new_file: returns the descriptor of an empty file, which the caller closes
    :raises ArchiveError: a layer is malformed
    """
    image = _image(json.loads(base.config), (*base.layers, layer))
    kept = count_kept(base, depth)
    return image if kept == len(base.layers) else squash(image, kept, new_file)


def count_kept(base: ArchivedImage, depth: int) -> int:
    """Return how many of an image's layers, from the lowest, ``on_top`` leaves as they are."""
    count = _count_snapshots(json.loads(base.config))
    if count < depth and len(base.layers) < MAX_DEPTH:
        return len(base.layers)
    kept = len(base.layers) - count
    return kept if kept < MAX_DEPTH else 0


def squash(image: ArchivedImage, kept: int, new_file: Callable[[], int]) -> ArchivedImage:
    """Return an image whose layers above the lowest ``kept`` are one; its configuration is kept.

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
    """Return the image of a configuration that lacks the last of its layers, a snapshot's."""
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{layer.digest}" for layer in layers]}
    history = [*_history(config, len(layers) - 1), {"created_by": SNAPSHOT}]
    return ArchivedImage(
        json.dumps({**config, "rootfs": rootfs, "history": history}).encode(), layers
    )


def _history(config: Mapping[str, Any], layers: int) -> list[dict[str, Any]]:
    """Return a configuration's history; a blank one unless it has an entry for each layer."""
    history = config.get("history")
    if (
        isinstance(history, list)
        and all(isinstance(entry, dict) for entry in history)
        and sum(not entry.get("empty_layer") for entry in history) == layers
    ):
        return list(history)
    return [{"created_by": ""}] * layers


def _count_snapshots(config: Mapping[str, Any]) -> int:
    """Return how many of an image's layers, from the highest, are snapshots."""
    history = _history(config, len(config["rootfs"]["diff_ids"]))
    words = [entry.get("created_by") for entry in reversed(history)]
    return next((number for number, word in enumerate(words) if word != SNAPSHOT), len(words))


# -- many layers into one -----------------------------------------------------------------------


def merge(layers: Sequence[Region], file: int, whole: bool = False) -> Layer:
    """Write one layer that does what several do in turn.

    :param layers: from the lowest
    :param file: descriptor of an empty file that gets the layer
    :param whole: nothing is below, so that nothing needs to be deleted
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
    """Return a layer's content as part of a file.

    :raises ArchiveError: it does not match its digest
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
    """What has been written, from the highest layer down.

    :ivar kinds: the type of the entry of each path
    :ivar gone: paths that layers below do not have any more
    :ivar opaque: folders of which layers below have nothing any more
    """

    whole: bool
    kinds: dict[str, bytes] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    opaque: set[str] = field(default_factory=set)

    def add(self, content: Region) -> Iterator[bytes]:
        """Return what the merged layer gets of one layer.

        What the layer hides counts for those below it, not for itself.
        """
        above = _Merged(self.whole, dict(self.kinds), set(self.gone), set(self.opaque))
        hidden = _HiddenFiles(content, above)
        for entry in _entries(content):
            name = _normal(entry.name)
            folder, last = posixpath.split(name)
            if last == _OPAQUE:
                yield from self._hide_below(above, folder)
            elif last.startswith(_WHITEOUT):
                yield from self._remove(above, posixpath.join(folder, last[len(_WHITEOUT) :]))
            elif above.shows(name):
                yield from self._write(entry, name, content, above, hidden)
            elif above.kinds.get(name) == tarfile.DIRTYPE and not entry.isdir():
                # a folder took the place of what would have hidden a folder below
                yield from self._hide_below(above, name)
        if len(self.kinds) + len(self.gone) > _MAX_ENTRIES:
            raise ArchiveError(f"it has more than {_MAX_ENTRIES} files to merge")

    def shows(self, name: str) -> bool:
        """Tell whether a path of a layer below can be seen."""
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
            # the first link takes the file's place
            entry = entry if target in hidden.moved else hidden.find(target)
            target = hidden.moved.setdefault(target, name)
            target = "" if target == name else target
        self.kinds[name] = entry.type
        written = copy.copy(entry)
        written.name = name
        written.linkname = target or entry.linkname
        written.type = tarfile.REGTYPE if entry.isreg() else entry.type
        # other records repeat what the entry says, and would win
        written.pax_headers = {
            key: value for key, value in entry.pax_headers.items() if key.startswith(_ATTRIBUTE)
        }
        yield written.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        if entry.isreg():
            if entry.issparse():
                raise ArchiveError("a layer has a file in one of GNU's sparse formats")
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
                yield _marker(posixpath.join(folder, _WHITEOUT + last))

    def _hide_below(self, above: "_Merged", folder: str) -> Iterator[bytes]:
        if folder in self.opaque or above._hidden(folder):
            return
        self.opaque.add(folder)
        if not self.whole:
            yield _marker(posixpath.join(folder, _OPAQUE))


def _entries(content: Region) -> Iterator[tarfile.TarInfo]:
    with tarfile.open(
        fileobj=RegionFile(content), mode="r:", encoding="utf-8", errors="surrogateescape"
    ) as tar:
        while (entry := tar.next()) is not None:
            # else it keeps every entry in memory
            tar.members = []  # type: ignore[attr-defined]
            yield entry


@dataclass
class _HiddenFiles:
    """Files of a layer that are hidden under their first name, but not under that of a hard link.

    :ivar content: the layer's
    :ivar above: what has been written of the layers above it
    :ivar moved: the first name that can be seen, by the hidden one
    """

    content: Region
    above: _Merged
    moved: dict[str, str] = field(default_factory=dict)

    def find(self, name: str) -> tarfile.TarInfo:
        """Return the entry of a file; ArchiveError if the layer has none."""
        if name not in self._originals:
            raise ArchiveError(f"a layer has a hard link to {ascii(name)[:80]}, which it lacks")
        return self._originals[name]

    @functools.cached_property
    def _originals(self) -> dict[str, tarfile.TarInfo]:
        names = {
            _normal(entry.linkname)
            for entry in _entries(self.content)
            if entry.islnk() and not self.above.shows(_normal(entry.linkname))
        }
        if len(names) > _MAX_HIDDEN_FILES:
            raise ArchiveError(
                f"a layer has more than {_MAX_HIDDEN_FILES} files hidden but for a link"
            )
        found: dict[str, tarfile.TarInfo] = {}
        for entry in _entries(self.content):
            if not entry.islnk() and (name := _normal(entry.name)) in names:
                found.setdefault(name, entry)
        return found


def _normal(name: str) -> str:
    return posixpath.normpath(name).lstrip("/")


def _marker(name: str) -> bytes:
    return tarfile.TarInfo(name).tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
