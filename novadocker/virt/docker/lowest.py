# SPDX-License-Identifier: Apache-2.0
"""Which file of an archive is the lowest layer of its image, while the archive still arrives.

The manifest says so and comes last. What comes before a layer is a hint that tenants may forge: who
relies on it must compare digests in the end. A wrong guess costs the time to unpack a layer.
"""

import posixpath

from novadocker.virt.docker.compression import ArchiveError
from novadocker.virt.docker.untrusted import parse


class Guess:
    """Guesses once for an archive.

    Engines before 25 save their layers in any order, each after a description that names the layer
    below it; later ones save them among the blobs of an OCI layout, by digest, perhaps after the
    configuration. Other programs begin with the lowest.
    """

    def __init__(self) -> None:
        self._digest = ""
        self._stacked: dict[str, bool] = {}
        self._first = True
        self._guessed = False

    def note(self, name: str, content: bytes) -> None:
        """Take a hint from a small file."""
        folder, last = posixpath.split(name)
        if not content.startswith(b"{"):
            # a layer that is small is one, too
            self._first = self._first and posixpath.splitext(last)[1] != ".tar"
            return
        try:
            found = parse(content, "file")
        except ArchiveError:
            return
        if last == "json":
            self._stacked[folder] = "parent" in found
        rootfs = found.get("rootfs")
        digests = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
        if isinstance(digests, list) and digests:
            self._digest = str(digests[0]).rpartition(":")[2]

    def is_lowest(self, name: str) -> bool:
        """Tell whether a large file that looks like a layer is the lowest; True but once."""
        if self._guessed:
            return False
        first, self._first = self._first, False
        folder = posixpath.dirname(name)
        if folder in self._stacked:
            self._guessed = not self._stacked[folder]
        elif self._digest:
            self._guessed = self._digest in name
        else:
            self._guessed = first and not folder.startswith("blobs/")
        return self._guessed
