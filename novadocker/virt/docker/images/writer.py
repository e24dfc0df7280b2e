# SPDX-License-Identifier: Apache-2.0
"""Archives that the driver writes: one image with its layers and without a tag.

Each layer is compared with its digest in the image's configuration while it is written. The
manifest, without which the engine creates no image, is written last. The engine does not read a
layer if it has one with that digest. Without the comparison, a tenant who has the digests of an
image could therefore boot the image's content.
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
    """A file that was sent to the engine before it was found to be a layer.

    :ivar name: of the file in the engine's archive
    :ivar digest: SHA-256 in hex
    """

    name: str
    digest: str


def docker_archive(
    image: ArchivedImage,
    early: Mapping[Content, Sent] = types.MappingProxyType({}),
    unpacked: str = "",
) -> Iterator[bytes]:
    """Yield the archive from which the engine loads the image without a tag, in chunks.

    :param early: layers that are in the archive already, by their content
    :param unpacked: digest (SHA-256 in hex) that the engine computed of a lowest layer that it has
    :raises ArchiveError: a layer does not match its digest, or has sparse files
    """
    names: dict[str, str] = {}
    digests = [layer.digest for layer in image.layers]
    # The engine's copy has the right chain id only as the lowest layer.
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
    # These come last, so that the engine loads no image if the connection breaks before.
    files = {f"{image.digest}.json": image.config, "manifest.json": json.dumps(manifest).encode()}
    for name, data in files.items():
        yield header(name, len(data)) + data + padding(len(data))
    yield bytes(2 * tarfile.BLOCKSIZE)


def oci_archive(image: ArchivedImage) -> Iterator[bytes]:
    """Yield the image as an OCI image layout in a tar archive, in chunks.

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
    # In an OCI layout this also verifies the digest in the blob's name, which is the same.
    _compare(digest.hexdigest(), layer, number)


def _compare(found: str, layer: Layer, number: int) -> None:
    if found != layer.digest:
        raise ArchiveError(f"layer {number} does not match its digest sha256:{layer.digest}")


def header(name: str, size: int) -> bytes:
    """Return the header of a file in a tar archive."""
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf(format=tarfile.GNU_FORMAT)


def padding(size: int) -> bytes:
    """Return the zeros that follow a file of that size in a tar archive."""
    return bytes(-size % tarfile.BLOCKSIZE)
