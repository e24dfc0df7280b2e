# SPDX-License-Identifier: Apache-2.0
"""Image archives: a tenant's archive is read, and an archive for the engine is written from it.

This module reads ``docker save`` archives (https://github.com/moby/docker-image-spec) and OCI image
layouts (https://github.com/opencontainers/image-spec/blob/main/image-layout.md), plain or
compressed. ``writer`` writes the image again for the engine.
"""

import contextlib
import hashlib
import json
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from novadocker import naming
from novadocker.virt.docker.images.platforms import Platform
from novadocker.virt.docker.images.regions import (
    ArchiveError,
    Content,
    Region,
    Scratch,
    UnfitHostError,
)
from novadocker.virt.docker.images.tar_reader import Tar, get, get_all, parse

# Metadata is kept in memory.
_MAX_MANIFEST_BYTES = 1 << 20
_MAX_CONFIG_BYTES = 4 << 20
_MAX_DESCRIPTORS = 256
# The engine's overlay2 driver can stack one layer more, which is the container's own.
_MAX_LAYERS = 127

_INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
CONFIG_TYPES = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)


@dataclass(frozen=True)
class Layer:
    """A layer as an uncompressed tar archive. ``digest`` is its SHA-256 in hex."""

    digest: str
    content: Content


@dataclass(frozen=True)
class ArchivedImage:
    """An image in an archive. It can be read while the archive is open.

    ``writer`` compares its layers with their digests.

    :ivar config: the image's configuration, unchanged
    :ivar layers: the lowest layer first
    """

    config: bytes
    layers: tuple[Layer, ...]

    @property
    def digest(self) -> str:
        """The SHA-256 of the configuration in hex, which identifies the image."""
        return hashlib.sha256(self.config).hexdigest()


@dataclass(frozen=True)
class _Config:
    content: bytes
    platform: str
    variant: str
    layer_digests: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """An image in an archive, with layers that may be compressed and are not verified."""

    config: _Config
    layers: tuple[Region, ...]


@contextlib.contextmanager
def open_image(
    archive: Region, platform: Platform, folder: Path, most: int = 0, share: int = 1
) -> Iterator[ArchivedImage]:
    """Find the image for a host in an archive and yield it. Does not read its layers' files.

    :param platform: of the host; its best variant in the archive is taken
    :param folder: directory for temporary files, which receive the decompressed parts
    :param most: bytes of the flavor's root disk, which the layers must fit together, and an archive
        that is compressed as a whole, too; 0 means no bound
    :param share: how often the layers, which are tar archives, may have so many bytes
    :raises ArchiveError: the archive is malformed or damaged, or does not have exactly one image
        for the host
    :raises UnfitHostError: hosts with newer CPUs or more programs can use the archive
    """
    with Scratch(folder, most, share) as scratch:
        tar = Tar(scratch.unpack(archive, "the archive"))
        if "manifest.json" in tar:
            found = _find_in_docker_archive(tar, platform)
        elif "index.json" in tar:
            found = _find_in_oci_layout(tar, platform)
        else:
            raise ArchiveError("it holds no image: neither manifest.json nor index.json")
        yield ArchivedImage(found.config.content, _unpacked_layers(found, scratch))


@contextlib.contextmanager
def open_root(
    archive: Region, platform: Platform, folder: Path, most: int = 0
) -> Iterator[ArchivedImage]:
    """Yield an image of one layer from the tar archive of a root file system.

    The archive may be compressed. The parameters are those of ``open_image``.

    :raises ArchiveError: the archive is not a tar archive, or is larger than the free space
    """
    with Scratch(folder, most) as scratch:
        content = scratch.unpack(archive, "the archive")
        scratch.check_fits(content.size, "the archive")
        if not is_tar(content):
            raise ArchiveError("it is not a tar archive")
        layer = Layer(content.digest(), content)
        config = {
            "architecture": platform.architecture,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer.digest}"]},
            "history": [{"created_by": "root file system of Glance"}],
        }
        yield ArchivedImage(json.dumps(config).encode(), (layer,))


# -- the two formats ----------------------------------------------------------------------------


def _find_in_docker_archive(tar: Tar, platform: Platform) -> _Found:
    entries = parse(tar.read("manifest.json", _MAX_MANIFEST_BYTES), "manifest.json")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ArchiveError("its manifest.json is malformed")
    if len(entries) != 1:
        raise ArchiveError(f"it holds {len(entries)} images; save one image per archive")
    entry = entries[0]
    name = get(entry, "Config", str, "manifest.json")
    config = _parse_config(tar.read(name, _MAX_CONFIG_BYTES))
    if config.platform != platform.text:
        raise ArchiveError(_wrong_platform({_full(config)}, platform))
    if platform.rank(config.variant) is None:
        raise UnfitHostError(_wrong_platform({_full(config)}, platform))
    layers = get_all(entry, "Layers", str, "manifest.json")
    return _Found(config, tuple(tar.region(layer) for layer in layers))


def _find_in_oci_layout(tar: Tar, platform: Platform) -> _Found:
    ranked: dict[int, list[_Found]] = {}
    others: set[str] = set()
    is_for_newer = False
    for descriptor in _image_descriptors(tar):
        # An archive may list images of other platforms without containing them.
        described = descriptor.get("platform")
        if isinstance(described, dict) and _platform(described) != platform.text:
            others.add(_platform(described))
            continue
        manifest = _read_blob_object(tar, descriptor)
        config_descriptor = get(manifest, "config", dict, "image manifest")
        if config_descriptor.get("mediaType") not in CONFIG_TYPES:
            continue
        config = _parse_config(_read_blob(tar, config_descriptor, _MAX_CONFIG_BYTES))
        rank = platform.rank(config.variant or _variant(described))
        if config.platform != platform.text or rank is None:
            others.add(_full(config, _variant(described)))
            is_for_newer = is_for_newer or config.platform == platform.text
            continue
        layers = get_all(manifest, "layers", dict, "image manifest")
        found = _Found(config, tuple(tar.region(_blob_name(layer)) for layer in layers))
        ranked.setdefault(rank, []).append(found)
    images = ranked[min(ranked)] if ranked else []
    if len(images) > 1:
        raise ArchiveError(
            f"it holds {len(images)} images for {platform.text}; save one per archive"
        )
    if not images:
        # Build attestations are listed as images for the platform "unknown/unknown".
        others.discard("unknown/unknown")
        if is_for_newer:
            raise UnfitHostError(_wrong_platform(others, platform))
        raise ArchiveError(_wrong_platform(others, platform) if others else "it holds no image")
    return images[0]


def _image_descriptors(tar: Tar) -> Iterator[dict[str, Any]]:
    """Yield the descriptors of all image manifests, each once, from indexes of any depth."""
    index = parse(tar.read("index.json", _MAX_MANIFEST_BYTES), "index.json")
    if not isinstance(index, dict):
        raise ArchiveError("its index.json is malformed")
    pending = get_all(index, "manifests", dict, "index.json")
    seen: set[str] = set()
    while pending:
        descriptor = pending.pop()
        name = _blob_name(descriptor)
        if name in seen:
            continue
        seen.add(name)
        if descriptor.get("mediaType") in _INDEX_TYPES:
            nested = _read_blob_object(tar, descriptor)
            pending += get_all(nested, "manifests", dict, "image index")
        else:
            yield descriptor
        if len(seen) + len(pending) > _MAX_DESCRIPTORS:
            raise ArchiveError(f"it lists more than {_MAX_DESCRIPTORS} images")


def _blob_name(descriptor: Mapping[str, Any]) -> str:
    return f"blobs/sha256/{_hex(descriptor.get('digest'))}"


def _read_blob(tar: Tar, descriptor: Mapping[str, Any], limit: int) -> bytes:
    name = _blob_name(descriptor)
    content = tar.read(name, limit)
    if hashlib.sha256(content).hexdigest() != posixpath.basename(name):
        raise ArchiveError(f"{name} does not match its digest")
    return content


def _read_blob_object(tar: Tar, descriptor: Mapping[str, Any]) -> dict[str, Any]:
    found = parse(_read_blob(tar, descriptor, _MAX_MANIFEST_BYTES), "image manifest")
    if not isinstance(found, dict):
        raise ArchiveError("its image manifest is malformed")
    return found


# -- the image ----------------------------------------------------------------------------------


def _unpacked_layers(found: _Found, scratch: Scratch) -> tuple[Layer, ...]:
    digests = found.config.layer_digests
    if len(digests) != len(found.layers):
        raise ArchiveError(
            f"its manifest names {len(found.layers)} layers, its configuration {len(digests)}"
        )
    if not 0 < len(digests) <= _MAX_LAYERS:
        raise ArchiveError(f"it has {len(digests)} layers; 1 to {_MAX_LAYERS} are possible")
    unpacked: dict[str, Layer] = {}
    for number, (digest, packed) in enumerate(zip(digests, found.layers, strict=True), 1):
        if digest not in unpacked:
            size = sum(layer.content.size for layer in unpacked.values())
            name = f"the image up to layer {number}"
            content = scratch.unpack(packed, f"layer {number}", size)
            scratch.check_fits(size + content.size, name)
            if not is_tar(content):
                raise ArchiveError(f"layer {number} is not a tar archive")
            unpacked[digest] = Layer(digest, content)
    return tuple(unpacked[digest] for digest in digests)


def is_tar(content: Region) -> bool:
    """Return True if the content begins with a tar header or with a block of zeros."""
    head = os.pread(content.descriptor, min(content.size, tarfile.BLOCKSIZE), content.offset)
    try:
        # Blocks of zeros end an archive. A layer without changes has no other blocks.
        return not any(head) or bool(tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape"))
    except tarfile.TarError:
        return False


def _parse_config(content: bytes) -> _Config:
    config = parse(content, "image configuration")
    if not isinstance(config, dict):
        raise ArchiveError("its image configuration is malformed")
    _refuse_aliases(config, ("architecture", "os", "rootfs", "variant"))
    rootfs = get(config, "rootfs", dict, "image configuration")
    _refuse_aliases(rootfs, ("diff_ids",))
    digests = get_all(rootfs, "diff_ids", str, "image configuration")
    return _Config(content, _platform(config), _variant(config), tuple(map(_hex, digests)))


def layer_digests(config: bytes) -> tuple[str, ...]:
    """Return the digests of an image's layers in hex, the lowest first, from its configuration.

    :raises ArchiveError: the configuration is malformed
    """
    return _parse_config(config).layer_digests


def _refuse_aliases(found: Mapping[str, Any], names: tuple[str, ...]) -> None:
    # The engine ignores the case of names, so such a name would bypass the checks of this module.
    for key in found:
        if key not in names and key.casefold() in names:
            raise ArchiveError(f"its image configuration has the ambiguous name {ascii(key)[:40]}")


def _platform(found: Mapping[str, Any]) -> str:
    return "/".join(_part(found.get(key) or "unknown") for key in ("os", "architecture"))


def _variant(found: object) -> str:
    return _part(found.get("variant") or "") if isinstance(found, dict) else ""


def _part(value: object) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "?", str(value)[:40])


def _full(config: _Config, variant: str = "") -> str:
    return "/".join(filter(None, (config.platform, config.variant or variant)))


def _wrong_platform(found: set[str], platform: Platform) -> str:
    best = "/".join((platform.text, *platform.variants[:1]))
    return f"it is for {', '.join(sorted(found))}; this host runs {best}"


def _hex(digest: object) -> str:
    if not isinstance(digest, str) or not naming.DIGEST.fullmatch(digest):
        raise ArchiveError(
            f"it has the malformed digest {ascii(digest)[:80]}; only sha256 is supported"
        )
    return digest.removeprefix("sha256:")
