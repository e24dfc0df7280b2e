# SPDX-License-Identifier: Apache-2.0
"""The check of an archive that the engine is to load as an image; pure.

The engine gives an image the names in the archive's manifest. A name such as ``nginx:latest`` would
replace an image of the operator's, so an archive must have the form that the driver writes
(``virt/docker/images/writer``): one image without a name.
"""

import re
import tarfile

from novadocker import naming
from novadocker.engine_proxy import forms
from novadocker.engine_proxy.forms import Refused

_MANIFEST = "manifest.json"
_LARGEST_MANIFEST = 1 << 20
_END_BLOCKS = 2
_CONFIG = rf"{naming.SHA256.pattern}\.json"
_LAYER = rf"(?:{naming.SHA256.pattern}|early-[0-9]{{1,6}})\.tar"
_NAMES = re.compile(rf"{re.escape(_MANIFEST)}|{_CONFIG}|{_LAYER}")

_manifest = forms.array(
    forms.fields(
        {
            "Config": forms.text(_CONFIG),
            "RepoTags": forms.equal(None),
            "Layers": forms.array(forms.text(_LAYER)),
        }
    )
)


class ImageCheck:
    """The check of one archive, which arrives in chunks."""

    def __init__(self) -> None:
        self._header = b""
        self._manifest = b""
        self._left = 0
        self._padding = 0
        self._in_manifest = False
        self._is_judged = False
        self._zeros = 0

    def feed(self, chunk: bytes) -> None:
        """Check the next bytes of the archive, before the engine gets them.

        The engine begins to load the image when it has the manifest and the end of the archive, so
        the manifest is judged before the engine has it.

        :raises Refused: the archive has not the form that the driver writes
        """
        position = 0
        while position < len(chunk):
            if self._left:
                taken = min(self._left, len(chunk) - position)
                if self._in_manifest:
                    self._manifest += chunk[position : position + taken]
                self._left -= taken
                if self._in_manifest and not self._left:
                    self._judge()
            elif self._padding:
                taken = min(self._padding, len(chunk) - position)
                self._padding -= taken
            else:
                taken = min(tarfile.BLOCKSIZE - len(self._header), len(chunk) - position)
                self._header += chunk[position : position + taken]
                if len(self._header) == tarfile.BLOCKSIZE:
                    self._begin(self._header)
                    self._header = b""
            position += taken

    def finish(self) -> None:
        """Check that the archive is complete.

        :raises Refused: the archive has no end
        """
        if self._left or self._padding or self._header or self._zeros < _END_BLOCKS:
            raise Refused("the archive is incomplete")

    def _begin(self, header: bytes) -> None:
        if not header.strip(b"\0"):
            if not self._is_judged:
                raise Refused(f"the archive ends before its {_MANIFEST}")
            self._zeros += 1
            return
        if self._is_judged:
            raise Refused(f"the archive continues after its {_MANIFEST}")
        try:
            entry = tarfile.TarInfo.frombuf(header, "ascii", "strict")
        except (tarfile.HeaderError, UnicodeError) as error:
            raise Refused(f"the archive has a malformed header: {error}") from error
        # A header that differs from the driver's may have another meaning for the engine.
        plain = tarfile.TarInfo(entry.name)
        plain.size = entry.size
        if not _NAMES.fullmatch(entry.name) or header != plain.tobuf(tarfile.GNU_FORMAT):
            raise Refused(f"the archive's file {entry.name[:80]!r} has not the driver's form")
        self._in_manifest = entry.name == _MANIFEST
        if self._in_manifest and not 0 < entry.size <= _LARGEST_MANIFEST:
            raise Refused(f"the archive's {_MANIFEST} has {entry.size} bytes")
        self._left = entry.size
        self._padding = -entry.size % tarfile.BLOCKSIZE

    def _judge(self) -> None:
        value = forms.parse(self._manifest)
        _manifest(value)
        if len(value) != 1:
            raise Refused(f"the archive has {len(value)} images")
        self._is_judged = True
