# SPDX-License-Identifier: Apache-2.0
"""Archives of ours: one image, its layers and no tag.

Every layer is compared with the digest in the image's configuration while it is written, and the
manifest, without which there is no image, comes after all of them. The engine itself does not read
a layer whose digest it has: without the comparison, whoever knows the digests of an image could
have its content.
"""

import hashlib
import json
import tarfile
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from novadocker.virt.docker.images import tar_check
from novadocker.virt.docker.images.archive import CONFIG_TYPES, ArchivedImage, Layer
from novadocker.virt.docker.images.regions import ArchiveError, Content

_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True)
class Sent:
    """What the engine has got already, before it was known to be a layer.

    :ivar name: in the engine's archive
    :ivar digest: SHA-256 in hex
    """

    name: str
    digest: str


def docker_archive(
    image: ArchivedImage,
    early: Mapping[Content, Sent] = types.MappingProxyType({}),
    unpacked: str = "",
) -> Iterator[bytes]:
    """Return an archive that makes the engine load the image, without a tag, in small pieces.

    :param early: layers that are in the archive already, by their content
    :param unpacked: SHA-256 in hex of a layer that the engine has, as it found it, for an image's
        lowest
    :raises ArchiveError: a layer does not match its digest, or has sparse files
    """
    names: dict[str, str] = {}
    digests = [layer.digest for layer in image.layers]
    # a layer counts as another one above others
    if unpacked == digests[0] and digests.count(unpacked) == 1:
        names[unpacked] = f"{unpacked}.tar"
    for number, layer in enumerate(image.layers, 1):
        if layer.digest in names:
            continue
        sent = early.get(layer.content)
        names[layer.digest] = sent.name if sent else f"{layer.digest}.tar"
        if sent:
            _compare(sent.digest, layer, number)
        else:
            yield from _file(names[layer.digest], layer, number)
    manifest = [
        {
            "Config": f"{image.digest}.json",
            "RepoTags": None,
            "Layers": [names[digest] for digest in digests],
        }
    ]
    # last: an engine that loses the connection before it has found no image to load
    files = {f"{image.digest}.json": image.config, "manifest.json": json.dumps(manifest).encode()}
    for name, data in files.items():
        yield header(name, len(data)) + data + padding(len(data))
    yield bytes(2 * tarfile.BLOCKSIZE)


def oci_archive(image: ArchivedImage) -> Iterator[bytes]:
    """Return the image as an OCI image layout in a tar archive, in small pieces.

    :raises ArchiveError: a layer does not match its digest, or has sparse files
    """
    written = set()
    for number, layer in enumerate(image.layers, 1):
        if layer.digest not in written:
            written.add(layer.digest)
            yield from _file(f"blobs/sha256/{layer.digest}", layer, number)
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST_TYPE,
            "config": _descriptor(CONFIG_TYPES[0], image.digest, len(image.config)),
            "layers": [
                _descriptor(_LAYER_TYPE, layer.digest, layer.content.size) for layer in image.layers
            ],
        }
    ).encode()
    digest = hashlib.sha256(manifest).hexdigest()
    index = {"schemaVersion": 2, "manifests": [_descriptor(_MANIFEST_TYPE, digest, len(manifest))]}
    files = {
        f"blobs/sha256/{image.digest}": image.config,
        f"blobs/sha256/{digest}": manifest,
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps(index).encode(),
    }
    for name, data in files.items():
        yield header(name, len(data)) + data + padding(len(data))
    yield bytes(2 * tarfile.BLOCKSIZE)


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}


def _file(name: str, layer: Layer, number: int) -> Iterator[bytes]:
    digest, check = hashlib.sha256(), tar_check.Check()
    yield header(name, layer.content.size)
    for chunk in layer.content.chunks():
        digest.update(chunk)
        check.feed(chunk)
        yield chunk
    yield padding(layer.content.size)
    # covers the blob's own digest too: what differs there would differ here
    _compare(digest.hexdigest(), layer, number)


def _compare(found: str, layer: Layer, number: int) -> None:
    if found != layer.digest:
        raise ArchiveError(f"layer {number} does not match its digest sha256:{layer.digest}")


def header(name: str, size: int) -> bytes:
    """Return what goes before a file in a tar archive."""
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf(format=tarfile.GNU_FORMAT)


def padding(size: int) -> bytes:
    """Return what goes after a file of that size."""
    return bytes(-size % tarfile.BLOCKSIZE)
