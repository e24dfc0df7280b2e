# SPDX-License-Identifier: Apache-2.0
"""Image archives in memory: ``docker save`` archives and OCI layouts, valid and invalid."""

import bz2
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

Files = dict[str, bytes]

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def dump(document: object) -> bytes:
    return json.dumps(document).encode()


def owners(path: Path) -> dict[str, tuple[int, int]]:
    """Return user and group of each file in the layers of a snapshot."""
    found = {}
    with tarfile.open(path) as image:
        for name in image.getnames():
            if ".json" not in name and (layer := image.extractfile(name)):
                with tarfile.open(fileobj=layer) as entries:
                    found |= {entry.name: (entry.uid, entry.gid) for entry in entries}
    return found


def entry(name: str, content: bytes = b"", **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    """Return a tar entry, which is a file unless ``attributes`` has another ``type``."""
    found = tarfile.TarInfo(name)
    found.size = len(content)
    for key, value in attributes.items():
        setattr(found, key, value)
    return found, content


def tar_of(entries: Sequence[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for found, content in entries:
            archive.addfile(found, io.BytesIO(content))
    return buffer.getvalue()


def tar(files: Mapping[str, bytes]) -> bytes:
    return tar_of([entry(name, content) for name, content in files.items()])


HAS_ZSTD = shutil.which("zstd") is not None
NO_ZSTD = "zstd is not installed"


def compress(content: bytes, program: str) -> bytes:
    if program == "plain":
        return content
    if program == "gzip":
        return gzip.compress(content, mtime=0)
    if program == "bzip2":
        return bz2.compress(content)
    if program == "zstd" and not HAS_ZSTD:
        pytest.skip(NO_ZSTD)
    return subprocess.run([program, "-c"], input=content, capture_output=True, check=True).stdout


def config(layers: Sequence[bytes], **changes: Any) -> bytes:
    """Return an image's configuration; ``layers`` are plain tar archives."""
    return dump(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(x)}" for x in layers]},
            **changes,
        }
    )


def docker_files(
    configuration: bytes,
    layers: Sequence[bytes],
    *,
    tags: Sequence[str] | None = None,
    compression: str = "plain",
) -> Files:
    """Return the files of a ``docker save`` archive."""
    names = [f"{number}{sha256(layer)[:8]}/layer.tar" for number, layer in enumerate(layers)]
    name = f"{sha256(configuration)}.json"
    manifest = [{"Config": name, "RepoTags": tags, "Layers": names}]
    repositories = {
        tag.rpartition(":")[0]: {tag.rpartition(":")[2]: "0" * 64} for tag in tags or ()
    }
    return {
        **{name: compress(layer, compression) for name, layer in zip(names, layers, strict=True)},
        name: configuration,
        "manifest.json": dump(manifest),
        "repositories": dump(repositories),
    }


def descriptor(files: Files, content: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    """Add a blob to the files of an OCI layout; return its descriptor."""
    files[f"blobs/sha256/{sha256(content)}"] = content
    return {
        "mediaType": media_type,
        "digest": f"sha256:{sha256(content)}",
        "size": len(content),
        **more,
    }


def oci_manifest(
    files: Files,
    configuration: bytes,
    layers: Sequence[bytes],
    compression: str = "plain",
    **more: Any,
) -> dict[str, Any]:
    """Add an image to the files of an OCI layout; return its descriptor."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor(files, configuration, CONFIG_TYPE),
        "layers": [
            descriptor(files, compress(layer, compression), f"{LAYER_TYPE}+{compression}")
            for layer in layers
        ],
    }
    return descriptor(files, dump(manifest), MANIFEST_TYPE, **more)


def oci_index(files: Files, descriptors: Sequence[Mapping[str, Any]]) -> Files:
    """Return the files of a complete OCI layout."""
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": list(descriptors)}
    return {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": dump(index),
        **files,
    }


def oci_files(
    configuration: bytes,
    layers: Sequence[bytes],
    *,
    tags: Sequence[str] | None = None,
    compression: str = "plain",
) -> Files:
    """Return the files of an OCI layout of one image."""
    files: Files = {}
    found = oci_manifest(files, configuration, layers, compression)
    names = [
        {"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": tag}
        for tag in tags or ()
    ]
    return oci_index(files, [{**found, "annotations": name} for name in names] or [found])


# -- forms of other builders ---------------------------------------------------------------------


def kaniko_files(configuration: bytes, layers: Sequence[bytes]) -> Files:
    """Return the files of ``kaniko --tar-path``: names with digests, layers in gzip."""
    packed = {f"{sha256(layer)}.tar.gz": compress(layer, "gzip") for layer in layers}
    name = f"sha256:{sha256(configuration)}"
    manifest = [{"Config": name, "RepoTags": ["web:1"], "Layers": list(packed)}]
    return {name: configuration, **packed, "manifest.json": dump(manifest)}


def buildah_tar(configuration: bytes, layers: Sequence[bytes]) -> bytes:
    """Return the archive of ``buildah push docker-archive:``, which links names of Docker 1.9."""
    found = [entry(f"{sha256(layer)}.tar", layer) for layer in layers]
    for number, layer in enumerate(layers):
        folder = f"{number:064x}"
        target = f"../{sha256(layer)}.tar"
        found += [
            entry(f"{folder}/VERSION", b"1.0"),
            entry(f"{folder}/layer.tar", type=tarfile.SYMTYPE, linkname=target),
            entry(f"{folder}/json", dump({"id": folder})),
        ]
    name = f"{sha256(configuration)}.json"
    names = [f"{sha256(layer)}.tar" for layer in layers]
    manifest = [{"Config": name, "RepoTags": None, "Layers": names}]
    found += [
        entry(name, configuration),
        entry("repositories", b"{}"),
        entry("manifest.json", dump(manifest)),
    ]
    return tar_of(found)


def buildx_files(configuration: bytes, layers: Sequence[bytes]) -> Files:
    """Return the files of ``docker buildx build --output type=oci`` with provenance and SBOM."""
    files: Files = {}
    image = oci_manifest(
        files, configuration, layers, "gzip", platform={"os": "linux", "architecture": "amd64"}
    )
    statements = [dump({"predicateType": kind}) for kind in ("provenance", "spdx")]
    attestation = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor(
            files, config(statements, architecture="unknown", os="unknown"), CONFIG_TYPE
        ),
        "layers": [descriptor(files, each, "application/vnd.in-toto+json") for each in statements],
    }
    attested = descriptor(
        files,
        dump(attestation),
        MANIFEST_TYPE,
        platform={"os": "unknown", "architecture": "unknown"},
        annotations={
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": image["digest"],
        },
    )
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [image, attested]}
    return oci_index(files, [descriptor(files, dump(index), INDEX_TYPE)])


def estargz(layer: bytes) -> bytes:
    """Return a layer as eStargz: one member of gzip for each piece, and a footer with a field."""
    pieces = [layer[begin : begin + 512] for begin in range(0, len(layer), 512)]
    extra = b"SG" + (22).to_bytes(2, "little") + f"{len(layer):016x}STARGZ".encode()
    footer = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff" + len(extra).to_bytes(2, "little") + extra
    empty = gzip.compress(b"", mtime=0)
    # The header of a member without a field has ten bytes.
    return b"".join(gzip.compress(piece, mtime=0) for piece in pieces) + footer + empty[10:]


def zstd_chunked(layer: bytes) -> bytes:
    """Return a layer as zstd:chunked: a frame for each piece, and skippable frames at the end."""
    pieces = [layer[begin : begin + 512] for begin in range(0, len(layer), 512)]
    frames = [compress(piece, "zstd") for piece in pieces]
    for metadata in (b"table of contents", b"GNUlInUx" * 8):
        frames.append(b"\x50\x2a\x4d\x18" + len(metadata).to_bytes(4, "little") + metadata)
    return b"".join(frames)


def packed_archive(
    configuration: bytes, layers: Sequence[bytes], pack: Callable[[bytes], bytes]
) -> bytes:
    """Return an OCI archive whose layers a function has packed."""
    files: Files = {}
    manifest = {
        "config": descriptor(files, configuration, CONFIG_TYPE),
        "layers": [descriptor(files, pack(layer), LAYER_TYPE) for layer in layers],
    }
    return tar(oci_index(files, [descriptor(files, dump(manifest), MANIFEST_TYPE)]))


OTHER_BUILDERS: Mapping[str, Callable[[bytes, Sequence[bytes]], bytes]] = {
    "kaniko": lambda *image: tar(kaniko_files(*image)),
    "buildah": buildah_tar,
    "buildx": lambda *image: tar(buildx_files(*image)),
    "eStargz": lambda *image: packed_archive(*image, estargz),
    "zstd:chunked": lambda *image: packed_archive(*image, zstd_chunked),
}
